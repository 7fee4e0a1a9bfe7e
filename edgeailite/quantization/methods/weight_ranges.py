"""Ranges of weights with the least error, found on data; see :mod:`.range_candidates`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgeailite.quantization.arithmetic.qparams import weight_scale
from edgeailite.quantization.arithmetic.ranges import weight_max_abs
from edgeailite.quantization.methods.range_candidates import best_range
from edgeailite.quantization.methods.registry import Batches, post_training_method
from edgeailite.quantization.modules.bias import min_weight_scale
from edgeailite.quantization.modules.layer_calls import LayerCall, layer_calls, run_in_float

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel
    from edgeailite.quantization.graph.recording import Hook


@post_training_method("weight_ranges", keeps_function=True)
@torch.no_grad()
def search_weight_ranges(model: GraphModel, batches: Batches) -> list[str]:
    """Give every layer's weight the range with the least error, per channel where its spec is.

    Args:
        model: Prepared model whose activations have their ranges.
        batches: Inputs of the model, a tuple for each batch.

    Returns:
        Paths of the layers whose range is now narrower than that of their weights.
    """
    calls = {call.path: call for call in layer_calls(model)}
    moments = _input_moments(model, list(calls.values()), batches)
    narrowed = []
    for path, call in calls.items():
        if call.layer.weight_quantizer.spec.fixed_range is not None:
            continue
        full = call.layer.rows(call.folded().weight).abs().amax(1)
        chosen = _best_weight_range(call, full, moments[path])
        if bool((chosen < full).any()):
            call.layer.set_weight_range(chosen)
            narrowed.append(path)
    return narrowed


def _input_moments(
    model: GraphModel, calls: list[LayerCall], batches: Batches
) -> dict[str, Tensor]:
    """Mean square of each layer's input per channel in the float model, shape ``(C_in,)``."""
    sums: dict[str, Tensor] = {}

    def hook_of(call: LayerCall) -> Hook:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], _output: Tensor) -> None:
            x = args[0].detach().float()
            axis = call.channel_axis % x.dim()
            axes = [a for a in range(x.dim()) if a != axis]
            moment = x.square().mean(dim=axes)
            sums[call.path] = sums.get(call.path, 0.0) + moment

        return hook

    run_in_float(model, batches, [(call.layer, hook_of(call)) for call in calls])
    return sums


def _best_weight_range(call: LayerCall, full: Tensor, moment: Tensor) -> Tensor:
    """Range of each output channel, shape ``(C_out,)``; all alike for a per-tensor grid."""
    layer, spec = call.layer, call.layer.weight_quantizer.spec
    weight, bias, _ = call.folded()
    seen = layer.input_channels(moment, weight)
    rows = layer.rows(weight)
    min_scale = min_weight_scale(rows, None, bias, layer.bias_spec, call.input_quantizer)

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

    return best_range(full, best_of, lambda r: torch.minimum(r, full), spec.power_of_two)


@torch.no_grad()
def start_weight_ranges(model: GraphModel) -> list[str]:
    """Begin learned weight ranges at the least squared error; those of a checkpoint stay.

    Args:
        model: Prepared model.

    Returns:
        Paths of the layers whose range was set.
    """
    started = []
    for call in layer_calls(model):
        layer, spec = call.layer, call.layer.weight_quantizer.spec
        if not spec.learned or layer.weight_quantizer.range_was_given:
            continue
        rows = layer.rows(call.folded().weight)
        layer.set_weight_range(weight_max_abs(rows, replace(spec, range_rule="mse")))
        layer.weight_quantizer.range_was_given = False
        started.append(call.path)
    return started
