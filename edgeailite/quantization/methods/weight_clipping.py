"""Clip weights that a few outliers stretch: the others would share a handful of grid points."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edgeailite.quantization.arithmetic.qparams import ceil_power_of_two
from edgeailite.quantization.modules.layer_calls import LayerCall, layer_calls
from edgeailite.quantization.modules.normalization import gain_and_offset

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel

MAX_UNCLIPPED = 15.0
MAX_OVER_MEDIAN = 16.0
HEADROOM = 120.0 / 128.0


@torch.no_grad()
def constrain_weights(model: GraphModel) -> list[str]:
    """Clip each layer's folded weight if its maximum is above 15 and 16 times its median magnitude.

    The limit is ``ceil_pow2(min(max, 16 * median)) * 120 / 128``. The float weights change.

    Args:
        model: Prepared model.

    Returns:
        Paths of the layers whose weights were clipped.
    """
    calls = {call.path: call for call in layer_calls(model)}
    return [path for path, call in calls.items() if _constrain(call)]


def _constrain(call: LayerCall) -> bool:
    if not call.has_own_weight:
        return False
    gain = None if call.batch_norm is None else gain_and_offset(call.batch_norm)[0]
    scale = 1.0 if gain is None else call.layer.channels(gain, call.weight)
    magnitudes = (call.weight * scale).abs()
    largest = magnitudes.max()
    allowed = MAX_OVER_MEDIAN * magnitudes.median()
    if not (largest > MAX_UNCLIPPED and largest > allowed):
        return False
    limit = ceil_power_of_two(torch.minimum(largest, allowed)) * HEADROOM
    # Infinite for a dead channel: not clipped.
    bound = limit / torch.as_tensor(scale, dtype=call.weight.dtype).abs()
    call.weight.copy_(torch.maximum(torch.minimum(call.weight, bound), -bound))
    return True
