"""Clip weights that a few outliers stretch: the others would share a handful of grid points."""

from __future__ import annotations

import torch

from edgeailite.quantization.arithmetic.qparams import ceil_power_of_two
from edgeailite.quantization.graph.model import GraphModel
from edgeailite.quantization.modules.layer_calls import LayerCall, layer_calls
from edgeailite.quantization.modules.normalization import gain_and_offset

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
    units = {unit.path: unit for unit in layer_calls(model)}
    return [path for path, unit in units.items() if _constrain(unit)]


def _constrain(unit: LayerCall) -> bool:
    gain = None if unit.batch_norm is None else gain_and_offset(unit.batch_norm)[0]
    scale = 1.0 if gain is None else unit.layer.channels(gain, unit.weight)
    magnitudes = (unit.weight * scale).abs()
    largest = magnitudes.max()
    allowed = MAX_OVER_MEDIAN * magnitudes.median()
    if not (largest > MAX_UNCLIPPED and largest > allowed):
        return False
    limit = ceil_power_of_two(torch.minimum(largest, allowed)) * HEADROOM
    # Infinite for a dead channel: not clipped.
    bound = limit / torch.as_tensor(scale, dtype=unit.weight.dtype).abs()
    unit.weight.copy_(torch.maximum(torch.minimum(unit.weight, bound), -bound))
    return True
