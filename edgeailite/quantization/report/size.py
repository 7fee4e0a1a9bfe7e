"""Size of a model's parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import nn

from edgeailite.quantization.report.entries import ModelSize

if TYPE_CHECKING:
    from edgeailite.quantization.modules.activation import FakeQuantize
    from edgeailite.quantization.modules.layer_calls import LayerCall


def model_size(
    model: nn.Module, calls: Sequence[LayerCall], quantizers: Iterable[FakeQuantize]
) -> ModelSize:
    """Measure the parameters of a prepared model in float and quantized.

    Folded batch norms take nothing. A layer that is used several times counts once.

    Args:
        model: Prepared model.
        calls: All calls of its layers.
        quantizers: All of its activation quantizers, whose ranges do not count.
    """
    stored: dict[int, int] = {}
    covered: set[int] = set()
    for call in calls:
        stored[id(call.weight)] = _stored_bytes(call)
        norm = call.batch_norm
        tensors = [] if norm is None else [*norm.parameters(), *norm.buffers()]
        covered |= {id(t) for t in (call.weight, call.bias, *tensors)}
    ranges = {id(t) for q in quantizers for t in (*q.parameters(), *q.buffers())}
    ranges |= {id(call.layer.weight_range) for call in calls}
    sizes = {
        id(t): 4 * t.numel()
        for t in (*model.parameters(), *model.buffers())
        if t.is_floating_point() and id(t) not in ranges
    }
    left = sum(size for key, size in sizes.items() if key not in covered)
    return ModelSize(sum(sizes.values()), sum(stored.values()) + left)


def _stored_bytes(call: LayerCall) -> int:
    """Bytes of a layer's weight, scales and bias."""
    folded, spec = call.folded(), call.layer.weight_quantizer.spec
    num_scales = 1 if spec.granularity == "per_tensor" else folded.scale.numel()
    bits = folded.weight.numel() * spec.bit_width + num_scales * 32
    if folded.bias is not None:
        bits += folded.bias.numel() * call.layer.bias_spec.bit_width
    return -(-bits // 8)
