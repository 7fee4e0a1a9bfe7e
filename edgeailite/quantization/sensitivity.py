"""What each layer's weight bits cost at the network's output, and the best bits for a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from edgeailite.quantization.graph import GraphModel
from edgeailite.quantization.layers import QuantLayer
from edgeailite.quantization.spec import QuantSpec
from edgeailite.quantization.units import float_arithmetic, layer_units

BIT_WIDTHS = (8, 4, 2)


@dataclass(frozen=True)
class LayerSensitivity:
    """What a layer's weight costs.

    Attributes:
        path: The layer's place in the module tree.
        num_weights: Values of its weight.
        errors: For each bit width, the mean squared change of the network's output with only this
            weight on its grid, relative to the output's variance.
    """

    path: str
    num_weights: int
    errors: dict[int, float]

    def num_bytes(self, bits: int) -> int:
        """Bytes of the weight, packed."""
        return -(-self.num_weights * bits // 8)


@torch.no_grad()
def layer_sensitivity(
    model: GraphModel,
    batches: Sequence[tuple[Tensor, ...]],
    weight_spec: Callable[[int], QuantSpec],
    bit_widths: Sequence[int] = BIT_WIDTHS,
) -> list[LayerSensitivity]:
    """Measure each layer alone: its weight on a grid, everything else in float.

    Args:
        model: Prepared; it stays as it is.
        batches: Inputs of the model, a tuple for each batch.
        weight_spec: The grid of a weight for a bit width.
        bit_widths: What to measure.

    Returns:
        In the order of the graph; a layer that is used several times counts once.

    Raises:
        ValueError: There are no batches.
    """
    if not batches:
        raise ValueError("There was no batch to measure sensitivity on: the data is empty.")
    layers = {unit.path: unit for unit in layer_units(model)}
    training = {module: module.training for module in model.modules()}
    found = []
    try:
        model.eval()
        with float_arithmetic(model):
            references = [_output(model, batch) for batch in batches]
            variance = _variance(references)
            for path, unit in tqdm(layers.items(), "sensitivity", leave=False, disable=None):
                errors = {}
                for bits in bit_widths:
                    with _only_this_weight(unit.layer, weight_spec(bits)):
                        outputs = [_output(model, batch) for batch in batches]
                    errors[bits] = _mean_square(outputs, references) / variance
                found.append(LayerSensitivity(path, unit.weight.numel(), errors))
    finally:
        for module, mode in training.items():
            module.training = mode
    return found


def _output(model: GraphModel, batch: tuple[Tensor, ...]) -> Tensor:
    leaves = [v for v in tree_leaves(model(*batch)) if isinstance(v, Tensor)]
    return torch.cat([leaf.reshape(leaf.shape[0], -1).double() for leaf in leaves], dim=1)


def _variance(outputs: list[Tensor]) -> float:
    return float(torch.cat(outputs).var(correction=0).clamp_min(1e-30))


def _mean_square(outputs: list[Tensor], references: list[Tensor]) -> float:
    return float((torch.cat(outputs) - torch.cat(references)).square().mean())


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
    sensitivities: Sequence[LayerSensitivity], *, max_bytes: int
) -> dict[str, int]:
    """The bits of each layer with the least summed error that fit a size.

    An integer program: one choice per layer, the sum of the bytes within the budget.

    Args:
        sensitivities: From :func:`layer_sensitivity`.
        max_bytes: What all weights may take, packed.

    Returns:
        Bits by path.

    Raises:
        ValueError: Not even the narrowest weights fit.
    """
    choices = [(layer, bits) for layer in sensitivities for bits in layer.errors]
    sizes = np.array([layer.num_bytes(bits) for layer, bits in choices])
    smallest = sum(min(layer.num_bytes(b) for b in layer.errors) for layer in sensitivities)
    if smallest > max_bytes:
        raise ValueError(
            f"max_bytes is {max_bytes}; the smallest these {len(sensitivities)} layers can take is "
            f"{smallest}. Allow more, or make the network smaller."
        )
    one_each = np.array([[layer is other for layer, _ in choices] for other in sensitivities])
    result = milp(
        np.array([layer.errors[bits] for layer, bits in choices]),
        integrality=np.ones(len(choices)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(sizes[None, :], ub=max_bytes),
            LinearConstraint(one_each.astype(float), lb=1, ub=1),
        ],
    )
    assert result.success
    chosen = result.x > 0.5
    return {layer.path: bits for (layer, bits), yes in zip(choices, chosen, strict=True) if yes}
