"""What each layer's bits cost at the network's output, and the best bits for a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, nn
from tqdm import tqdm

from edgeailite.quantization.arithmetic.spec import QuantSpec
from edgeailite.quantization.arithmetic.sqnr import flat_outputs
from edgeailite.quantization.graph.model import GraphModel
from edgeailite.quantization.graph.recording import Hook
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.modules.layer import QuantLayer
from edgeailite.quantization.modules.layer_calls import (
    LayerCall,
    float_arithmetic,
    layer_calls,
    quantizer_behind,
    run_in_float,
)

BIT_WIDTHS = (16, 8, 4)


@dataclass(frozen=True)
class LayerSensitivity:
    """What a layer costs.

    Attributes:
        path: The layer's place in the module tree.
        num_weights: Values of its weight.
        errors: For each bit width, the mean squared change of the network's output with only this
            layer on its grid, relative to the output's variance.
        num_macs: Multiply-accumulates for one input.
    """

    path: str
    num_weights: int
    errors: dict[int, float]
    num_macs: int = 0

    def num_bytes(self, bits: int) -> int:
        """Bytes of the weight, packed."""
        return -(-self.num_weights * bits // 8)

    def mac_bits(self, bits: int) -> int:
        """Multiply-accumulates times the bits of the weight."""
        return self.num_macs * bits


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
        bit_widths: What to measure.
        weight_spec: From a layer's grid to that of a bit width.
        activations: Put the layer's output on a grid of as many bits too; needs calibrated ranges.

    Returns:
        In the order of the graph; a layer that is used several times counts once.

    Raises:
        ValueError: There are no batches.
    """
    if not batches:
        raise ValueError("There was no batch to measure sensitivity on: the data is empty.")
    layers = {unit.path: unit for unit in layer_calls(model)}
    training = {module: module.training for module in model.modules()}
    found = []
    try:
        model.eval()
        macs = dict.fromkeys(layers, 0)
        run_in_float(model, batches[:1], _count_macs(layers, macs))
        with float_arithmetic(model):
            reference = flat_outputs(model(*batch) for batch in batches)
            variance = float(reference.var(correction=0).clamp_min(1e-30))
            for path, unit in tqdm(layers.items(), "sensitivity", leave=False, disable=None):
                errors = {}
                for bits in bit_widths:
                    spec = weight_spec(unit.layer.weight_spec, bits)
                    output = output_quantizer(model, unit) if activations else None
                    with _only_this_weight(unit.layer, spec), _with_output(output, bits):
                        error = flat_outputs(model(*batch) for batch in batches) - reference
                    errors[bits] = float(error.square().mean()) / variance
                count = macs[path] // len(batches[0][0])
                found.append(LayerSensitivity(path, unit.weight.numel(), errors, count))
    finally:
        for module, mode in training.items():
            module.training = mode
    return found


def _count_macs(layers: dict[str, LayerCall], macs: dict[str, int]) -> list[tuple[nn.Module, Hook]]:
    """Hooks that add up the multiply-accumulates of each layer's calls."""

    def hook_of(path: str, unit: LayerCall) -> Hook:
        def hook(_module: nn.Module, args: tuple[Any, ...], y: Tensor) -> None:
            # A transposed layer multiplies each of its inputs, any other makes each of its outputs.
            if unit.layer.is_transposed:
                macs[path] += args[0].numel() * unit.weight[0].numel()
            else:
                macs[path] += y.numel() * unit.layer.rows(unit.weight).shape[1]

        return hook

    return [(unit.layer, hook_of(path, unit)) for path, unit in layers.items()]


def output_quantizer(model: GraphModel, unit: LayerCall) -> FakeQuantize | None:
    """The quantizer behind a layer, if what it gives is quantized there."""
    behind = quantizer_behind(model, unit.node)
    module = None if behind is None else model.module_of(behind)
    return module if isinstance(module, FakeQuantize) else None


@contextmanager
def _with_output(quantizer: FakeQuantize | None, bits: int) -> Iterator[None]:
    """Inside, `quantizer` computes with so many bits, in its range."""
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
    """Inside, `layer` computes with its folded weight on the grid of `spec`, and a float bias."""
    before = layer.weight_spec

    def compute(x: Tensor, weight: Tensor, bias: Any, batch_norm: Any, *_: Any) -> Tensor:
        folded = layer.folded(weight, bias, batch_norm, None)
        return layer.operate(x, layer.fake_quantized(folded.weight, folded.scale), folded.bias)

    layer.weight_spec = spec
    layer.compute = compute  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        layer.weight_spec = before
        del layer.compute


def choose_bit_widths(
    sensitivities: Sequence[LayerSensitivity],
    *,
    max_bytes: int | None = None,
    max_mac_bits: int | None = None,
) -> dict[str, int]:
    """The bits of each layer with the least summed error that fit a budget.

    An integer program: one choice per layer, the sums of bytes and of MAC-bits within the budgets.

    Args:
        sensitivities: From :func:`layer_sensitivity`.
        max_bytes: What all weights may take, packed; None: any size.
        max_mac_bits: What all multiply-accumulates times the bits of their weights may sum up to,
            for one input; None: any.

    Returns:
        Bits by path.

    Raises:
        ValueError: Not even the narrowest weights fit, one budget or both together.
    """
    choices = [(layer, bits) for layer in sensitivities for bits in layer.errors]
    budgets = {
        "max_bytes": (max_bytes, LayerSensitivity.num_bytes),
        "max_mac_bits": (max_mac_bits, LayerSensitivity.mac_bits),
    }
    one_each = np.array([[layer is other for layer, _ in choices] for other in sensitivities])
    constraints = [LinearConstraint(one_each.astype(float), lb=1, ub=1)]
    for name, (budget, cost) in budgets.items():
        if budget is None:
            continue
        smallest = sum(min(cost(layer, b) for b in layer.errors) for layer in sensitivities)
        if smallest > budget:
            raise ValueError(
                f"{name} is {budget}; the smallest these {len(sensitivities)} layers can take is "
                f"{smallest}. Allow more, or make the network smaller."
            )
        # In parts of the budget: a solver's tolerance is for numbers near 1.
        costs = np.array([cost(layer, bits) / max(budget, 1) for layer, bits in choices])
        constraints.append(LinearConstraint(costs[None, :], ub=1.0 + 1e-12))
    errors = np.array([layer.errors[bits] for layer, bits in choices])
    result = milp(
        # In units of the smallest one: the solver stops at an absolute gap of 1e-6.
        errors / max(errors[errors > 0].min(initial=np.inf), 1e-30),
        integrality=np.ones(len(choices)),
        bounds=Bounds(0, 1),
        constraints=constraints,
    )
    assert result.success
    chosen = result.x > 0.5
    return {layer.path: bits for (layer, bits), yes in zip(choices, chosen, strict=True) if yes}
