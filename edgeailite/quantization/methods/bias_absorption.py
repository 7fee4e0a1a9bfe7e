"""High-bias absorption: what a channel always holds goes into the bias of the layers that read it.

A channel with values from 5 to 6 wastes five sixths of a grid that begins at 0. Less 5, which the
readers' biases add again, it fills its range from 0 to 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgeailite.quantization.graph.model import GraphModel
from edgeailite.quantization.graph.recording import Hook
from edgeailite.quantization.methods.bias_correction import correctable_bias
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.modules.layer_calls import (
    LayerCall,
    layer_calls,
    quantizer_behind,
    run_in_float,
)


@torch.no_grad()
def absorb_biases(model: GraphModel, batches: Sequence[tuple[Any, ...]]) -> list[str]:
    """Lower every channel behind a ReLU by the least it holds on the data, and make up behind it.

    ``b'[c] = b[c] - m[c]`` where the channel is made, ``b'[o] = b[o] + sum_c W[o, c] m[c]`` where
    it is read, with ``m = min relu(x)``: the same network in float, as long as a channel holds no
    less than on the data. Only layers that read the value directly, without padding, take part, for
    padding puts zeros beside the values; and of a ReLU6 the channels that never reach its bound.

    Args:
        model: Prepared model; in evaluation mode.
        batches: Inputs of the model, a tuple for each batch.

    Returns:
        Paths of the layers whose output was lowered.

    Reference: Nagel et al. 2019, https://arxiv.org/abs/1906.04721, section 4.1.3 (there by the
        batch norm's mean and deviation, here by the data).
    """
    units = {unit.node: unit for unit in layer_calls(model)}
    calls = Counter(unit.path for unit in units.values())
    readers: dict[fx.Node, list[LayerCall]] = {}
    makers: dict[fx.Node, LayerCall] = {}
    for node, unit in units.items():
        behind = _relu_behind(model, node)
        if behind is None or not _is_alone(unit, calls) or correctable_bias(unit) is None:
            continue
        users = [units[user] for user in behind.users if user in units]
        reading = [user for user in behind.users if user.op != "get_attr"]
        if len(users) == len(reading) and all(_takes(unit, calls, behind) for unit in users):
            makers[behind], readers[behind] = unit, users
    lowered = []
    for node, least in _least_values(model, list(makers), batches).items():
        if not bool((least > 0).any()):
            continue
        bias = correctable_bias(makers[node])
        assert bias is not None
        bias -= least.to(bias)
        for unit in readers[node]:
            _add_constant(unit, least)
        lowered.append(makers[node].path)
    return lowered


def _relu_behind(model: GraphModel, node: fx.Node) -> fx.Node | None:
    """The quantizer that alone reads a layer's result, if it stands for a ReLU or ReLU6."""
    behind = quantizer_behind(model, node)
    quantizer = None if behind is None else model.module_of(behind)
    if not isinstance(quantizer, FakeQuantize):
        return None
    low = 0.0 if quantizer.spec.signed is False else None
    low = low if quantizer.bounds is None else quantizer.bounds[0]
    return behind if low == 0.0 and quantizer.spec.fixed_range is None else None


def _is_alone(unit: LayerCall, calls: Counter[str]) -> bool:
    return calls[unit.path] == 1 and isinstance(unit.weight, nn.Parameter)


def _takes(unit: LayerCall, calls: Counter[str], value: fx.Node) -> bool:
    """Whether adding a constant to a layer's input adds one to each output channel."""
    padding = getattr(unit.layer, "padding", 0)
    no_padding = padding == "valid" or not any(torch.atleast_1d(torch.tensor(padding)).tolist())
    has_place = unit.batch_norm is not None or unit.bias is not None
    on_axis_1 = unit.channel_axis == 1 and not unit.layer.is_transposed
    return (
        _is_alone(unit, calls)
        and unit.input_node is value
        and on_axis_1
        and no_padding
        and has_place
    )


def _least_values(
    model: GraphModel, nodes: list[fx.Node], batches: Sequence[tuple[Any, ...]]
) -> dict[fx.Node, Tensor]:
    """The least that each channel holds in float, 0 where a bound is reached; shape ``(C,)``."""
    found: dict[fx.Node, list[Tensor]] = {node: [] for node in nodes}

    def hook_of(node: fx.Node) -> Hook:
        def hook(module: nn.Module, _args: Any, y: Tensor) -> None:
            assert isinstance(module, FakeQuantize)
            values = y.detach().float().transpose(0, 1).flatten(1)
            least = values.amin(1)
            if module.has_upper_bound:
                reached = values.amax(1) >= module.upper_bounds(len(least))
                least = torch.where(reached, torch.zeros_like(least), least)
            found[node].append(least)

        return hook

    run_in_float(
        model, batches, [(model.get_submodule(str(node.target)), hook_of(node)) for node in nodes]
    )
    return {node: torch.stack(parts).amin(0) for node, parts in found.items()}


def _add_constant(unit: LayerCall, constant: Tensor) -> None:
    """Let a layer add what its weight makes of a constant per input channel."""
    weight, layer, norm = unit.weight, unit.layer, unit.batch_norm
    added = layer.rows(weight * layer.input_channels(constant.to(weight), weight)).sum(1)
    if norm is None:
        assert unit.bias is not None
        unit.bias.add_(added)
    else:
        # Of the statistics, so that a later training finds them as they are.
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        assert norm.running_mean is not None
        norm.running_mean -= added.to(norm.running_mean)
