"""Ranges with the least error, of activations and of weights, found on data.

The error is that of the output of the layers which read a value:
``E[(W (Q(x) - x))^2] ~ sum_c |W_c|^2 E[(Q(x_c) - x_c)^2]`` for an activation, and
``E[((Q(W) - W) x)^2] ~ sum_k (Q(w_k) - w_k)^2 E[x_k^2]`` for a weight: errors of different values
are taken as independent.

Reference: Nagel et al. 2021, https://arxiv.org/abs/2106.08295, section 3.1 (range setting by mean
squared error).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgeailite.quantization.arithmetic.qparams import activation_qparams, weight_scale
from edgeailite.quantization.arithmetic.ranges import weight_max_abs
from edgeailite.quantization.arithmetic.spec import QuantSpec
from edgeailite.quantization.graph.model import GraphModel
from edgeailite.quantization.graph.operations import Kind
from edgeailite.quantization.graph.recording import Hook
from edgeailite.quantization.modules.activation import BATCHES_BEFORE_LEARNING, FakeQuantize
from edgeailite.quantization.modules.layer_calls import LayerCall, layer_calls, run_in_float
from edgeailite.quantization.modules.pact2 import quantizers
from edgeailite.quantization.prepare.insert import quantizer_of

# Values of an activation, over all batches, that its error is measured on.
SAMPLE_SIZE = 1 << 18
# Parts of the full range that are tried: powers of two, then finer ones around the best.
_POWERS = tuple(2.0**-i for i in range(10))
_FINER = tuple(0.04 * i for i in range(14, 50))


@torch.no_grad()
def search_activation_ranges(model: GraphModel, batches: Sequence[tuple[Any, ...]]) -> list[str]:
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
    model: GraphModel, wanted: dict[str, FakeQuantize], batches: Sequence[tuple[Any, ...]]
) -> dict[str, Tensor]:
    """What goes into each quantizer in the float model: rows of all channels, (n, C)."""
    rows: dict[str, list[Tensor]] = defaultdict(list)

    def hook_of(path: str) -> Hook:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], _output: Tensor) -> None:
            x = args[0].detach().float()
            x = x.movedim(1, -1).reshape(-1, x.shape[1]) if x.dim() > 1 else x.reshape(-1, 1)
            step = max(x.numel() * len(batches) // SAMPLE_SIZE, 1) | 1
            rows[path].append(x[::step].clone())

        return hook

    run_in_float(model, batches, [(quantizer, hook_of(path)) for path, quantizer in wanted.items()])
    return {path: torch.cat(parts) for path, parts in rows.items()}


def _channel_importance(model: GraphModel) -> dict[str, Tensor]:
    """``|W_c|^2`` of all layers that read a quantizer's value, by its path; only where all do."""
    energies: dict[str, Tensor] = {}
    readers: dict[fx.Node, int] = defaultdict(int)
    for unit in layer_calls(model):
        node = quantizer_of(model, unit.input_node)
        if node is None:
            continue
        readers[node] += 1
        path, energy = str(node.target), input_energy(unit)
        known = energies.get(path)
        if known is None or known.shape == energy.shape:
            energies[path] = energy if known is None else known + energy
    counted = {str(node.target): count == _num_readers(node) for node, count in readers.items()}
    return {path: energy for path, energy in energies.items() if counted[path]}


def _num_readers(node: fx.Node) -> int:
    """Operations that read a value, behind whatever only moves it."""
    moves = (Kind.PRESERVE, Kind.PAD)
    return sum(
        _num_readers(user) if user.meta["kind"] in moves else 1
        for user in node.users
        if user.op != "get_attr"
    )


def input_energy(unit: LayerCall) -> Tensor:
    """Sum of the squares of the folded weights that an input channel meets, shape ``(C_in,)``."""
    layer = unit.layer
    squares = unit.folded().weight.square()
    if layer.is_transposed or squares.dim() == 2:
        return squares.flatten(1).sum(1) if layer.is_transposed else squares.sum(0)
    groups = layer.num_groups
    grouped = squares.reshape(groups, squares.shape[0] // groups, squares.shape[1], -1)
    return grouped.sum((1, 3)).flatten()


def _best_range(quantizer: FakeQuantize, values: Tensor, weights: Tensor) -> Tensor:
    """``[low, high]`` with the least weighted squared error on `values` (n, C)."""
    spec, values = quantizer.spec, quantizer.float_activation(values)
    full = torch.stack([values.amin(), values.amax()])

    def within(clips: Tensor) -> Tensor:
        return torch.stack([torch.maximum(clips[0], full[0]), torch.minimum(clips[1], full[1])])

    best = _least_error([full * part for part in _POWERS], values, weights, spec)
    if spec.power_of_two:
        return best
    best = _least_error([within(best * part) for part in _FINER], values, weights, spec)
    if spec.symmetric:
        return best
    # An affine grid's ends are free.
    for end in (0, 1):
        candidates = [best]
        for part in _FINER:
            candidate = best.clone()
            candidate[end] *= part
            candidates.append(within(candidate))
        best = _least_error(candidates, values, weights, spec)
    return best


def _least_error(
    candidates: list[Tensor], values: Tensor, weights: Tensor, spec: QuantSpec
) -> Tensor:
    errors = []
    for clips in candidates:
        scale, zero_point, quant_min, quant_max = activation_qparams(clips, spec)
        q = (torch.round(values / scale) + zero_point).clamp(quant_min, quant_max)
        error = ((q - zero_point) * scale - values).square().mean(0)
        errors.append((error * weights).sum())
    return candidates[int(torch.stack(errors).argmin())]


@torch.no_grad()
def search_weight_ranges(model: GraphModel, batches: Sequence[tuple[Any, ...]]) -> list[str]:
    """Give every layer's weight the range with the least error, per channel where its spec is.

    Args:
        model: Prepared model whose activations have their ranges.
        batches: Inputs of the model, a tuple for each batch.

    Returns:
        Paths of the layers whose range is now narrower than that of their weights.
    """
    units = {unit.path: unit for unit in layer_calls(model)}
    moments = _input_moments(model, list(units.values()), batches)
    narrowed = []
    for path, unit in units.items():
        if unit.layer.weight_spec.fixed_range is not None:
            continue
        full = unit.layer.rows(unit.folded().weight).abs().amax(1)
        chosen = _best_weight_range(unit, full, moments[path])
        if bool((chosen < full).any()):
            unit.layer.set_weight_range(chosen)
            narrowed.append(path)
    return narrowed


def _input_moments(
    model: GraphModel, units: list[LayerCall], batches: Sequence[tuple[Any, ...]]
) -> dict[str, Tensor]:
    """Mean square of each layer's input per channel in the float model, shape ``(C_in,)``."""
    sums: dict[str, Tensor] = {}

    def hook_of(unit: LayerCall) -> Hook:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], _output: Tensor) -> None:
            x = args[0].detach().float()
            axis = unit.channel_axis % x.dim()
            axes = [a for a in range(x.dim()) if a != axis]
            moment = x.square().mean(dim=axes)
            sums[unit.path] = sums.get(unit.path, 0.0) + moment

        return hook

    run_in_float(model, batches, [(unit.layer, hook_of(unit)) for unit in units])
    return sums


def _best_weight_range(unit: LayerCall, full: Tensor, moment: Tensor) -> Tensor:
    """Of each output channel, shape ``(C_out,)``; alike in all for a per-tensor grid."""
    layer, spec = unit.layer, unit.layer.weight_spec
    weight, bias, _ = unit.folded()
    seen = layer.input_channels(moment, weight)
    rows = layer.rows(weight)
    min_scale = layer.min_scale(rows, None, bias, unit.input_quantizer)

    def best_of(candidates: list[Tensor]) -> Tensor:
        errors = []
        for candidate in candidates:
            scale = weight_scale(candidate, spec, min_scale)
            error = (layer.fake_quantized(weight, scale) - weight).square() * seen
            errors.append(layer.rows(error).sum(1))
        table = torch.stack(errors)
        if spec.granularity == "per_tensor":
            table = table.sum(1, keepdim=True).expand_as(table)
        return torch.stack(candidates).gather(0, table.argmin(0, keepdim=True))[0]

    best = best_of([full * part for part in _POWERS])
    if spec.power_of_two:
        return best
    return best_of([torch.minimum(best * part, full) for part in _FINER])


@torch.no_grad()
def start_weight_ranges(model: GraphModel) -> list[str]:
    """Begin learned weight ranges at the least squared error; those of a checkpoint stay.

    Args:
        model: Prepared model.

    Returns:
        Paths of the layers whose range was set.
    """
    started = []
    for unit in layer_calls(model):
        layer, spec = unit.layer, unit.layer.weight_spec
        if not spec.learned or layer.range_was_given:
            continue
        rows = layer.rows(unit.folded().weight)
        layer.set_weight_range(weight_max_abs(rows, replace(spec, range_rule="mse")))
        layer.range_was_given = False
        started.append(unit.path)
    return started
