"""Biases that can be corrected, and those that bring a layer nearest to its float output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from edgeailite.quantization.modules.layer_calls import Activation, LayerCall


# Newton steps of a bias; they are as if at least this part of its channel's values moved with it:
# the larger one where the mean of all values is made right.
_STEPS = 3
_FEWEST_MOVING, _FEWEST_COUNTED = 0.125, 0.02
# Values of a channel that means are taken of.
_VALUES = 2048


def over_processes(mean: Tensor) -> Tensor:
    """Mean of a value over all processes, in place."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
    return mean


def correctable_bias(call: LayerCall) -> Tensor | None:
    """Bias that a correction is added to: the batch norm's, else the layer's own.

    None without both, and for a bias that is computed.
    """
    if call.batch_norm is not None:
        bias = call.batch_norm.bias
        assert bias is None or isinstance(bias, Tensor)
        return bias
    return call.bias if isinstance(call.bias, nn.Parameter) else None


def some_outputs(call: LayerCall, outputs: list[Tensor], count: int = _VALUES) -> Tensor:
    """Take about `count` outputs of each channel from all batches, float32, shape ``(n, C)``."""
    rows = [y.movedim(call.channel_axis, -1).flatten(0, -2) for y in outputs]
    stride = max(sum(map(len, rows)) // count, 1) | 1
    return torch.cat([part[::stride] for part in rows]).float()


def fit_bias(activate: Activation, made: Tensor, wanted: Tensor, bias: Tensor) -> Tensor:
    """Bias with which the mean behind an activation function is right.

    Where the function cuts a value off, moving it changes nothing: the others make up for all.

    Args:
        activate: The function.
        made: Values in front of it without the bias, shape ``(n, C)``.
        wanted: Mean behind it as it should be, shape ``(C,)``.
        bias: To begin with, shape ``(C,)``.
    """
    for _ in range(_STEPS):
        moved = made + bias
        found = activate(moved)
        moving = (found == moved).float().mean(0)
        bias = bias + (wanted - found.mean(0)) / moving.clamp_min(_FEWEST_MOVING)
    return bias


def nearest_bias(activate: Activation, made: Tensor, wanted: Tensor) -> Tensor:
    """Shift with the least squared error behind an activation function, shape ``(C,)``.

    It is that of the values of all processes.

    Args:
        activate: The function.
        made: Values in front of it, shape ``(n, C)``.
        wanted: Values behind it as they should be, shape ``(n, C)``.
    """
    shift = torch.zeros_like(made[0])
    for _ in range(_STEPS):
        moved = made + shift
        found = activate(moved)
        moving = found == moved
        errors = torch.where(moving, wanted - found, 0.0)
        error, count = over_processes(torch.stack([errors.mean(0), moving.float().mean(0)]))
        shift = shift + error / count.clamp_min(_FEWEST_COUNTED)
    return shift
