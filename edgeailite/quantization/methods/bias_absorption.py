"""High-bias absorption: move the least value of a channel into the biases of its readers.

A channel with values from 5 to 6 wastes five sixths of a grid that begins at 0. Less 5, which the
readers' biases add again, it fills its range from 0 to 1.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from edgeailite.quantization.graph.model import module_of
from edgeailite.quantization.graph.patterns import quantizer_behind
from edgeailite.quantization.methods.bias_fitting import correctable_bias
from edgeailite.quantization.methods.registry import Batches, post_training_method
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.modules.layer_calls import (
    LayerCall,
    layer_calls,
    run_in_float,
)

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel
    from edgeailite.quantization.graph.recording import Hook


@post_training_method("bias_absorption", keeps_function=True)
@torch.no_grad()
def absorb_biases(model: GraphModel, batches: Batches) -> list[str]:
    """Lower every channel behind a ReLU by its least value, and raise the biases of its readers.

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
    calls = {call.node: call for call in layer_calls(model)}
    uses = Counter(call.path for call in calls.values())
    readers: dict[fx.Node, list[LayerCall]] = {}
    makers: dict[fx.Node, LayerCall] = {}
    for node, call in calls.items():
        behind = _relu_behind(model, node)
        if behind is None or not _is_alone(call, uses) or correctable_bias(call) is None:
            continue
        users = [calls[user] for user in behind.users if user in calls]
        reading = [user for user in behind.users if user.op != "get_attr"]
        if len(users) == len(reading) and all(_takes(call, uses, behind) for call in users):
            makers[behind], readers[behind] = call, users
    lowered = []
    for node, least in _least_values(model, list(makers), batches).items():
        if not bool((least > 0).any()):
            continue
        bias = correctable_bias(makers[node])
        assert bias is not None
        bias -= least.to(bias)
        for call in readers[node]:
            _add_constant(call, least)
        lowered.append(makers[node].path)
    return lowered


def _relu_behind(model: GraphModel, node: fx.Node) -> fx.Node | None:
    """Quantizer that alone reads a layer's result, if it stands for a ReLU or ReLU6."""
    behind = quantizer_behind(node)
    quantizer = None if behind is None else module_of(model, behind)
    if not isinstance(quantizer, FakeQuantize):
        return None
    low = 0.0 if quantizer.spec.signed is False else None
    low = low if quantizer.bounds is None else quantizer.bounds[0]
    return behind if low == 0.0 and quantizer.spec.fixed_range is None else None


def _is_alone(call: LayerCall, uses: Counter[str]) -> bool:
    return uses[call.path] == 1 and call.has_own_weight


def _takes(call: LayerCall, uses: Counter[str], value: fx.Node) -> bool:
    """True if a constant added to a layer's input adds one to each output channel."""
    padding = getattr(call.layer, "padding", 0)
    no_padding = padding == "valid" or not any(torch.atleast_1d(torch.tensor(padding)).tolist())
    has_place = call.batch_norm is not None or call.bias is not None
    on_axis_1 = call.channel_axis == 1 and not call.layer.is_transposed
    return (
        _is_alone(call, uses)
        and call.input_node is value
        and on_axis_1
        and no_padding
        and has_place
    )


def _least_values(
    model: GraphModel, nodes: list[fx.Node], batches: Batches
) -> dict[fx.Node, Tensor]:
    """Least value of each channel in float, 0 where a bound is reached; shape ``(C,)``."""
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


def _add_constant(call: LayerCall, constant: Tensor) -> None:
    """Add to a layer's output the effect of a constant per input channel."""
    weight, layer, norm = call.weight, call.layer, call.batch_norm
    added = layer.rows(weight * layer.input_channels(constant.to(weight), weight)).sum(1)
    if norm is None:
        assert call.bias is not None
        call.bias.add_(added)
    else:
        # Of the statistics, so that a later training finds them as they are.
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        assert norm.running_mean is not None
        norm.running_mean -= added.to(norm.running_mean)
