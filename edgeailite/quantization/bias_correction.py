"""Bias correction: move each layer's mean output back to where it is in float, channel by channel."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from edgeailite.quantization.graph import GraphModel
from edgeailite.quantization.units import LayerUnit, float_arithmetic, layer_units, recorded_outputs


class _ChannelMeans:
    """Mean output of each layer per channel, over all its calls (and all processes)."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.calls: dict[str, int] = {}

    def __call__(self, unit: LayerUnit, output: Tensor) -> None:
        axes = [a for a in range(output.dim()) if a != unit.channel_axis % output.dim()]
        mean = output.float().mean(dim=axes)
        self.sums[unit.path] = self.sums.get(unit.path, 0.0) + mean  # type: ignore[assignment]
        self.calls[unit.path] = self.calls.get(unit.path, 0) + 1

    def result(self) -> dict[str, Tensor]:
        means = {path: total / self.calls[path] for path, total in self.sums.items()}
        if dist.is_available() and dist.is_initialized():
            for mean in means.values():
                dist.all_reduce(mean)
                mean /= dist.get_world_size()
        return means


def correctable_bias(unit: LayerUnit) -> Tensor | None:
    """What a correction is added to: the batch norm's bias, else the layer's; None if there is neither."""
    if unit.batch_norm is not None:
        return unit.batch_norm.bias  # type: ignore[return-value]
    return unit.bias


@torch.no_grad()
def calibration_step(model: GraphModel, args: tuple, kwargs: dict[str, Any], rate: float) -> Any:
    """One batch of calibration: ``bias += rate * (mean(float) - mean(quantized))`` for every layer.

    Args:
        model: Prepared model. Batch norms and dropout in evaluation mode; quantizers that are in training mode
            update their ranges in the quantized pass.
        args: The model's inputs.
        kwargs: The model's inputs by name.
        rate: Part of the difference that is corrected; 0 only updates ranges.

    Returns:
        The quantized pass's output.

    Reference: Nagel et al. 2019, https://arxiv.org/abs/1906.04721, section 4.2 (empirical bias correction).
    """
    if rate == 0.0:
        return model(*args, **kwargs)
    units = layer_units(model)
    float_means, quantized_means = _ChannelMeans(), _ChannelMeans()
    with float_arithmetic(model), recorded_outputs(units, float_means):
        model(*args, **kwargs)
    with recorded_outputs(units, quantized_means):
        output = model(*args, **kwargs)
    target, actual = float_means.result(), quantized_means.result()
    for path, unit in {unit.path: unit for unit in units}.items():
        bias = correctable_bias(unit)
        if bias is not None:
            bias.add_(target[path] - actual[path], alpha=rate)
    return output
