"""Bias correction: move each layer's mean output back to where it is in float, per channel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
        known = self.sums.get(unit.path)
        self.sums[unit.path] = mean if known is None else known + mean
        self.calls[unit.path] = self.calls.get(unit.path, 0) + 1

    def result(self) -> dict[str, Tensor]:
        means = {path: total / self.calls[path] for path, total in self.sums.items()}
        if dist.is_available() and dist.is_initialized():
            for mean in means.values():
                dist.all_reduce(mean)
                mean /= dist.get_world_size()
        return means


def correctable_bias(unit: LayerUnit) -> Tensor | None:
    """What a correction is added to: the batch norm's bias, else the layer's; None without both."""
    if unit.batch_norm is not None:
        bias = unit.batch_norm.bias
        assert bias is None or isinstance(bias, Tensor)
        return bias
    return unit.bias


class BiasCorrection:
    """Per layer and channel ``c += rate * (mean(float) - mean(quantized))``; ``bias + c`` is used.

    The float pass runs without the corrections made so far: it is the reference, and must not
    follow them.

    Args:
        model: Prepared model. Batch norms and dropout in evaluation mode; quantizers that are in
            training mode update their ranges in the quantized pass.
        rate: Part of the difference that one batch corrects.
        corrections: Those that a resumed run had made, by path.

    Reference: Nagel et al. 2019, https://arxiv.org/abs/1906.04721, section 4.2 (empirical bias
        correction).
    """

    def __init__(
        self, model: GraphModel, rate: float, corrections: dict[str, Tensor] | None = None
    ) -> None:
        self.model, self.rate, self.num_loads = model, rate, model.num_loads
        self.units = layer_units(model)
        self.biases = {
            unit.path: bias for unit in self.units if (bias := correctable_bias(unit)) is not None
        }
        self.corrections = {path: torch.zeros_like(bias) for path, bias in self.biases.items()}
        for path, correction in (corrections or {}).items():
            self.corrections[path].copy_(correction)

    @property
    def is_stale(self) -> bool:
        """Whether other weights were loaded since: they do not contain the corrections so far."""
        return self.num_loads != self.model.num_loads

    @torch.no_grad()
    def step(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        """One batch: a float pass, a quantized pass, the correction.

        Args:
            args: The model's inputs.
            kwargs: The model's inputs by name.

        Returns:
            The quantized pass's output.
        """
        target, actual = _ChannelMeans(), _ChannelMeans()
        with (
            self._uncorrected(),
            float_arithmetic(self.model),
            recorded_outputs(self.units, target),
        ):
            self.model(*args, **kwargs)
        with recorded_outputs(self.units, actual):
            output = self.model(*args, **kwargs)
        wanted, found = target.result(), actual.result()
        for path, bias in self.biases.items():
            change = (wanted[path] - found[path]) * self.rate
            self.corrections[path] += change
            bias += change
        return output

    @contextmanager
    def _uncorrected(self) -> Iterator[None]:
        corrected = {path: bias.clone() for path, bias in self.biases.items()}
        try:
            for path, bias in self.biases.items():
                bias -= self.corrections[path]
            yield
        finally:
            for path, bias in self.biases.items():
                bias.copy_(corrected[path])
