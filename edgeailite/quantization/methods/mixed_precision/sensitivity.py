"""Sensitivity of the network's output to the bits of each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from edgeailite.quantization.arithmetic.spec import QuantSpec
from edgeailite.quantization.arithmetic.sqnr import flat_outputs
from edgeailite.quantization.graph.modes import in_mode
from edgeailite.quantization.methods.mixed_precision.result import LayerSensitivity
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.modules.layer_calls import (
    LayerCall,
    float_arithmetic,
    layer_calls,
    output_quantizer,
    run_in_float,
)

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel
    from edgeailite.quantization.graph.recording import Hook
    from edgeailite.quantization.modules.layer import QuantLayer

BIT_WIDTHS = (16, 8, 4)


@torch.no_grad()
def layer_sensitivity(
    model: GraphModel,
    batches: Sequence[tuple[Tensor, ...]],
    bit_widths: Sequence[int] = BIT_WIDTHS,
    *,
    weight_spec: Callable[[QuantSpec, int], QuantSpec] = QuantSpec.with_bits,
    activations: bool = False,
) -> list[LayerSensitivity]:
    """Measure each layer alone: its weight on a grid, everything else in float.

    Args:
        model: Prepared; it stays as it is.
        batches: Inputs of the model, a tuple for each batch.
        bit_widths: Bit widths to measure.
        weight_spec: Makes the grid of a bit width from a layer's grid.
        activations: Put the layer's output on a grid of as many bits too; needs calibrated ranges.

    Returns:
        In the order of the graph; a layer that is used several times counts once.

    Raises:
        ValueError: There are no batches.
    """
    if not batches:
        raise ValueError("There was no batch to measure sensitivity on: the data is empty.")
    layers = {call.path: call for call in layer_calls(model)}
    found = []
    with in_mode(model, training=False):
        macs = _count_macs(model, layers, batches[0])
        with float_arithmetic(model):
            reference = flat_outputs(model(*batch) for batch in batches)
            variance = float(reference.var(correction=0).clamp_min(1e-30))
            for path, call in tqdm(layers.items(), "sensitivity", leave=False, disable=None):
                output = output_quantizer(model, call) if activations else None
                errors = {}
                for bits in bit_widths:
                    spec = weight_spec(call.layer.weight_quantizer.spec, bits)
                    with _only_this_weight(call.layer, spec), _with_output(output, bits):
                        error = flat_outputs(model(*batch) for batch in batches) - reference
                    errors[bits] = float(error.square().mean()) / variance
                found.append(LayerSensitivity(path, call.weight.numel(), errors, macs[path]))
    return found


def _count_macs(
    model: GraphModel, layers: dict[str, LayerCall], batch: tuple[Tensor, ...]
) -> dict[str, int]:
    """Multiply-accumulates of each layer for one input, over all of its calls."""
    macs = dict.fromkeys(layers, 0)

    def hook_of(path: str, call: LayerCall) -> Hook:
        def hook(_module: nn.Module, args: tuple[Any, ...], y: Tensor) -> None:
            # A transposed layer multiplies each of its inputs, any other makes each of its outputs.
            if call.layer.is_transposed:
                macs[path] += args[0].numel() * call.weight[0].numel()
            else:
                macs[path] += y.numel() * call.layer.rows(call.weight).shape[1]

        return hook

    run_in_float(model, [batch], [(call.layer, hook_of(p, call)) for p, call in layers.items()])
    return {path: count // len(batch[0]) for path, count in macs.items()}


@contextmanager
def _with_output(quantizer: FakeQuantize | None, bits: int) -> Iterator[None]:
    """Let a quantizer compute with so many bits, in its range."""
    if quantizer is None or quantizer.spec.fixed_range is not None:
        yield
        return
    before = quantizer.spec
    quantizer.spec, quantizer.fake_quant_enabled = before.with_bits(bits), True
    try:
        yield
    finally:
        quantizer.spec, quantizer.fake_quant_enabled = before, False


@contextmanager
def _only_this_weight(layer: QuantLayer, spec: QuantSpec) -> Iterator[None]:
    """Let a layer compute with its folded weight on the grid of `spec`, and a float bias."""
    before = layer.weight_quantizer.spec

    def compute(x: Tensor, weight: Tensor, bias: Any, batch_norm: Any, *rest: Any) -> Tensor:
        folded = layer.folded(weight, bias, batch_norm, None)
        on_grid = layer.fake_quantized(folded.weight, folded.scale)
        return layer.operate(x, on_grid, folded.bias, output_size=rest[-1])

    layer.weight_quantizer.spec = spec
    try:
        with layer.computing_with(compute):
            yield
    finally:
        layer.weight_quantizer.spec = before
