"""Ranges of activations with the least error, found on data; see :mod:`.range_candidates`."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from edgeailite.quantization.arithmetic.qparams import activation_qparams
from edgeailite.quantization.graph.calls import traits_of
from edgeailite.quantization.graph.patterns import quantizer_of
from edgeailite.quantization.methods.range_candidates import FINE_PARTS, best_range
from edgeailite.quantization.methods.registry import Batches, post_training_method
from edgeailite.quantization.modules.activation import BATCHES_BEFORE_LEARNING, FakeQuantize
from edgeailite.quantization.modules.layer_calls import LayerCall, layer_calls, run_in_float
from edgeailite.quantization.modules.pact2 import quantizers

if TYPE_CHECKING:
    from edgeailite.quantization.arithmetic.spec import QuantSpec
    from edgeailite.quantization.graph.model import GraphModel
    from edgeailite.quantization.graph.recording import Hook

# Values of an activation, over all batches, that its error is measured on.
SAMPLE_SIZE = 1 << 18
# Parts of the range of these values whose error is computed together.
_BINS = 1 << 13


@post_training_method("activation_ranges", keeps_function=True)
@torch.no_grad()
def search_activation_ranges(model: GraphModel, batches: Batches) -> list[str]:
    """Give every activation the range with the least error; only learning moves it from there.

    Args:
        model: Prepared model.
        batches: Inputs of the model, a tuple for each batch.

    Returns:
        Paths of the quantizers whose range was chosen; fixed ranges stay as they are.
    """
    found = {n: q for n, q in quantizers(model).items() if q.spec.fixed_range is None}
    samples = _sample_inputs(model, found, batches)
    importance = _channel_importance(model)
    for path, values in samples.items():
        quantizer = found[path]
        weights = importance.get(path)
        if weights is None or weights.numel() != values.shape[1]:
            weights = values.new_ones(values.shape[1])
        quantizer.clips_act.copy_(_best_range(quantizer, values, weights))
        is_learned = quantizer.spec.learned
        seen = max(len(batches), BATCHES_BEFORE_LEARNING) if is_learned else len(batches)
        quantizer.num_batches_tracked.fill_(seen - 1)
        quantizer.observer_enabled = is_learned
    return list(samples)


def _sample_inputs(
    model: GraphModel, wanted: dict[str, FakeQuantize], batches: Batches
) -> dict[str, Tensor]:
    """Values that reach each quantizer in the float model: rows of all channels, (n, C)."""
    rows: dict[str, list[Tensor]] = defaultdict(list)

    def hook_of(path: str) -> Hook:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], _output: Tensor) -> None:
            x = args[0].detach().float()
            x = x.movedim(1, -1).reshape(-1, x.shape[1]) if x.dim() > 1 else x.reshape(-1, 1)
            stride = max(x.numel() * len(batches) // SAMPLE_SIZE, 1) | 1
            rows[path].append(x[::stride].clone())

        return hook

    run_in_float(model, batches, [(quantizer, hook_of(path)) for path, quantizer in wanted.items()])
    return {path: torch.cat(parts) for path, parts in rows.items()}


def _channel_importance(model: GraphModel) -> dict[str, Tensor]:
    """``|W_c|^2`` of all layers that read a quantizer's value, by its path; only where all do."""
    energies: dict[str, Tensor] = {}
    readers: dict[fx.Node, int] = defaultdict(int)
    for call in layer_calls(model):
        node = quantizer_of(call.input_node)
        if node is None:
            continue
        readers[node] += 1
        path, energy = str(node.target), input_energy(call)
        known = energies.get(path)
        if known is None or known.shape == energy.shape:
            energies[path] = energy if known is None else known + energy
    counted = {str(node.target): count == _num_readers(node) for node, count in readers.items()}
    return {path: energy for path, energy in energies.items() if counted[path]}


def _num_readers(node: fx.Node) -> int:
    """Operations that read a value, behind whatever only moves it."""
    return sum(
        _num_readers(user) if traits_of(user).moves_values else 1
        for user in node.users
        if user.op != "get_attr"
    )


def input_energy(call: LayerCall) -> Tensor:
    """Sum of the squares of the folded weights that an input channel meets, shape ``(C_in,)``."""
    layer = call.layer
    squares = call.folded().weight.square()
    if layer.is_transposed or squares.dim() == 2:
        return squares.flatten(1).sum(1) if layer.is_transposed else squares.sum(0)
    groups = layer.num_groups
    grouped = squares.reshape(groups, squares.shape[0] // groups, squares.shape[1], -1)
    return grouped.sum((1, 3)).flatten()


def _best_range(quantizer: FakeQuantize, values: Tensor, weights: Tensor) -> Tensor:
    """``[low, high]`` with the least weighted squared error on `values` (n, C)."""
    spec, values = quantizer.spec, quantizer.float_activation(values)
    points, mass = _histogram(values, weights)
    full = torch.stack([values.amin(), values.amax()])

    def within(clips: Tensor) -> Tensor:
        return torch.stack([torch.maximum(clips[0], full[0]), torch.minimum(clips[1], full[1])])

    def best_of(candidates: list[Tensor]) -> Tensor:
        return _least_error(candidates, points, mass, spec)

    best = best_range(full, best_of, within, spec.power_of_two)
    if spec.power_of_two or spec.symmetric:
        return best
    # The ends of an affine grid are free.
    for end in (0, 1):
        candidates = [best]
        for part in FINE_PARTS:
            candidate = best.clone()
            candidate[end] *= part
            candidates.append(within(candidate))
        best = best_of(candidates)
    return best


def _histogram(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the values in each bin between the smallest and the largest, and their weight.

    Args:
        values: Shape ``(n, C)``.
        weights: Of each channel, shape ``(C,)``.

    Returns:
        Both of shape ``(bins,)``; an empty bin has no weight.
    """
    low, high = values.amin(), values.amax()
    place = ((values - low) * ((_BINS - 1) / (high - low).clamp_min(1e-30))).long().flatten()
    each = weights.expand_as(values).flatten().double()
    mass = torch.bincount(place, each, minlength=_BINS)
    total = torch.bincount(place, each * values.flatten(), minlength=_BINS)
    return (total / mass.clamp_min(1e-300)).float(), mass


def _least_error(candidates: list[Tensor], points: Tensor, mass: Tensor, spec: QuantSpec) -> Tensor:
    errors = []
    for clips in candidates:
        scale, zero_point, quant_min, quant_max = activation_qparams(clips, spec)
        q = (torch.round(points / scale) + zero_point).clamp(quant_min, quant_max)
        errors.append((((q - zero_point) * scale - points).square() * mass).sum())
    return candidates[int(torch.stack(errors).argmin())]
