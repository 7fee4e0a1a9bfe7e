"""Mean output of each layer per channel, and the bias that moves it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from edgeailite.quantization.modules.layer_calls import LayerCall


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
    """Bias that a correction is added to: the batch norm's, else the layer's; None without both."""
    if call.batch_norm is not None:
        bias = call.batch_norm.bias
        assert bias is None or isinstance(bias, Tensor)
        return bias
    return call.bias
