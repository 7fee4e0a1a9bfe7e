"""Mean output of each layer per channel, and the bias that moves it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from edgeailite.quantization.modules.layer_calls import Activation, LayerCall


# Newton steps of a bias; they are as if at least this part of its channel's values moved with it.
_STEPS = 3
_FEWEST_MOVING = 0.125
# Values of a channel that means are taken of.
_VALUES = 2048


class ChannelMeans:
    """Mean output of each layer per channel, over all its runs (and all processes).

    An instance is called with each layer's call and its output.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def __call__(self, call: LayerCall, output: Tensor) -> None:
        """Add the output of one run of a layer."""
        mean = channel_mean(call, output)
        known = self._sums.get(call.path)
        self._sums[call.path] = mean if known is None else known + mean
        self._counts[call.path] = self._counts.get(call.path, 0) + 1

    def result(self) -> dict[str, Tensor]:
        """Return the means by the layers' paths, shape ``(C,)``."""
        means = {path: total / self._counts[path] for path, total in self._sums.items()}
        return {path: over_processes(mean) for path, mean in means.items()}


def channel_mean(call: LayerCall, output: Tensor) -> Tensor:
    """Mean of a layer's output per channel, float32, shape ``(C,)``."""
    axes = [a for a in range(output.dim()) if a != call.channel_axis % output.dim()]
    return output.float().mean(dim=axes)


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


def some_outputs(call: LayerCall, outputs: list[Tensor]) -> Tensor:
    """Take about 2048 outputs of each channel from all batches, float32, shape ``(n, C)``."""
    rows = [y.movedim(call.channel_axis, -1).flatten(0, -2) for y in outputs]
    stride = max(sum(map(len, rows)) // _VALUES, 1) | 1
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
