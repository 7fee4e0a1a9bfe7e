"""Weights that a method found on a layer's grid become the layer's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgeailite.quantization.methods.bias_fitting import correctable_bias
from edgeailite.quantization.modules.normalization import gain_and_offset

if TYPE_CHECKING:
    from edgeailite.quantization.arithmetic.spec import QuantSpec
    from edgeailite.quantization.modules.layer_calls import LayerCall


@torch.no_grad()
def store_weight(call: LayerCall, weight: Tensor, scale: Tensor) -> None:
    """Give a layer a folded weight that is on the grid already, and keep that grid.

    Args:
        call: Call of the layer, which has a weight of its own.
        weight: In real units, shape of the layer's.
        scale: Of each output channel, shape ``(C_out,)``.
    """
    layer = call.layer
    gain = None if call.batch_norm is None else gain_and_offset(call.batch_norm)[0]
    if gain is not None:
        divisor = layer.channels(torch.where(gain == 0, torch.ones_like(gain), gain), weight)
        weight = torch.where(layer.channels(gain, weight) == 0, call.weight, weight / divisor)
    layer.set_weight_range(range_of(scale, layer.weight_quantizer.spec))
    call.weight.copy_(weight)


@torch.no_grad()
def shift_bias(call: LayerCall, shift: Tensor, scale: Tensor | None = None) -> None:
    """Move a layer's bias, or its batch norm's, as far as the integers of the bias reach.

    A bias that outgrows its integer would coarsen the weight's grid. Where biases saturate, one
    that is cut off already stays.

    Args:
        call: Call of the layer; without any bias it stays as it is.
        shift: Of each output channel, shape ``(C_out,)``.
        scale: Of the weight, shape ``(C_out,)``; None: as it is.
    """
    bias, spec = correctable_bias(call), call.layer.bias_spec
    if bias is None:
        return
    if call.input_quantizer is None or spec.is_float:
        bias += shift
        return
    layer = call.folded()
    assert layer.bias is not None
    scale = layer.scale if scale is None else scale
    moved = within_integers(call, layer.bias + shift, scale)
    if spec.rule == "saturate":
        is_cut = within_integers(call, layer.bias, scale) != layer.bias
        moved = torch.where(is_cut, layer.bias, moved)
    bias += moved - layer.bias


def within_integers(call: LayerCall, bias: Tensor, scale: Tensor) -> Tensor:
    """Cut a folded bias off where its integers end; shapes ``(C_out,)``."""
    spec = call.layer.bias_spec
    if call.input_quantizer is None or spec.is_float:
        return bias
    limit = call.input_quantizer.qparams().scale * scale * (spec.limit - 1)
    return torch.maximum(torch.minimum(bias, limit), -limit)


def range_of(scale: Tensor, spec: QuantSpec) -> Tensor:
    """Magnitudes that give these scales again: a little less, as scales are rounded up."""
    largest = spec.quant_max if not spec.power_of_two else 1 << spec.quant_max.bit_length()
    return scale * (largest * (1 - 2.0**-20))
