"""Biases that do not fit their integers: the weight's scale is coarser for them, or they are cut.

Reference: section "Bias" of docs/numbers.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from edgeailite.quantization.modules.bias import min_weight_scale
from edgeailite.quantization.modules.layer_calls import LayerCall, layer_calls

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel

# Of a scale that is just coarse enough.
_ROUNDING = 2.0**-20


@dataclass(frozen=True)
class BiasFit:
    """A layer whose biases do not fit into their integers on the weight's own scale.

    Attributes:
        path: The layer.
        bit_width: Bits of its biases.
        factor: The weight's scale is so many times coarser for them, in the channel that needs the
            most; 1: it is not.
        num_coarser: Number of channels whose scale is coarser.
        num_cut: Number of biases that are cut at the largest integer.
        num_biases: Number of biases.
        largest: Largest magnitude of a bias.
    """

    path: str
    bit_width: int
    factor: float
    num_coarser: int
    num_cut: int
    num_biases: int
    largest: float


@torch.no_grad()
def bias_fit(call: LayerCall) -> BiasFit | None:
    """Return the effect of biases that do not fit; None if all of them do."""
    weight, bias, scale = call.folded()
    layer, spec = call.layer, call.layer.bias_spec
    if bias is None or call.input_quantizer is None or spec.is_float:
        return None
    rows = layer.rows(weight)
    room = min_weight_scale(rows, None, None, spec, call.input_quantizer)
    own = layer.weight_quantizer.scale(rows, None, layer.weight_range, room)
    ratio = scale / own
    factor, num_coarser = float(ratio.max()), int((ratio > 1).sum())
    integers = bias / (call.input_quantizer.qparams().scale * scale)
    num_cut = int((integers.abs() > spec.limit * (1 + _ROUNDING)).sum())
    if factor <= 1 and num_cut == 0:
        return None
    largest = float(bias.abs().max())
    counts = num_coarser, num_cut, bias.numel()
    return BiasFit(call.path, spec.bit_width, factor, *counts, largest)


def bias_fits(model: GraphModel) -> dict[str, BiasFit]:
    """Layers whose biases do not fit, by path, in the order of the graph."""
    found = (bias_fit(call) for call in layer_calls(model))
    return {fit.path: fit for fit in found if fit is not None}


def describe_coarser(fits: list[BiasFit]) -> str:
    """Say in a line which weight scales are coarser for the biases, and by how much."""
    layers = ", ".join(f"'{fit.path}' ({_factor(fit)})" for fit in fits)
    return f"weight scales are coarser, so that biases fit {_bits(fits)} bits: {layers}"


def describe_cut(fits: list[BiasFit]) -> str:
    """Say in which layers biases are cut, and what keeps them."""
    layers = ", ".join(f"'{fit.path}' ({fit.num_cut} of {fit.num_biases})" for fit in fits)
    return (
        f"Biases do not fit {_bits(fits)} bits and are cut: {layers}. constrain_bias=None coarsens "
        "the weight's scale instead, constrain_bias='NONE' takes wider biases."
    )


def _factor(fit: BiasFit) -> str:
    if fit.num_coarser == fit.num_biases:
        return f"{fit.factor:.3g} times"
    channels = f"{fit.num_coarser} of {fit.num_biases} channels"
    return f"up to {fit.factor:.3g} times in {channels}"


def _bits(fits: list[BiasFit]) -> str:
    return " or ".join(map(str, sorted({fit.bit_width for fit in fits})))
