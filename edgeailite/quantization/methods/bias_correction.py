"""Bias correction: move each layer's mean output back to where it is in float, per channel.

While a wrapper calibrates, batch by batch (:class:`BiasCorrection`); on given data, layer by layer
(:func:`correct_biases`); or without data (:func:`correct_biases_analytically`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, fx, nn
from tqdm import tqdm

from edgeailite.quantization.graph.model import GraphModel
from edgeailite.quantization.graph.running import sweep
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.modules.layer_calls import (
    LayerCall,
    added_half_step,
    float_arithmetic,
    layer_call,
    layer_calls,
    recorded_outputs,
)
from edgeailite.quantization.prepare.insert import quantizer_of


class _ChannelMeans:
    """Mean output of each layer per channel, over all its calls (and all processes)."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.calls: dict[str, int] = {}

    def __call__(self, unit: LayerCall, output: Tensor) -> None:
        mean = _channel_mean(unit, output)
        known = self.sums.get(unit.path)
        self.sums[unit.path] = mean if known is None else known + mean
        self.calls[unit.path] = self.calls.get(unit.path, 0) + 1

    def result(self) -> dict[str, Tensor]:
        means = {path: total / self.calls[path] for path, total in self.sums.items()}
        return {path: _over_processes(mean) for path, mean in means.items()}


def _channel_mean(unit: LayerCall, output: Tensor) -> Tensor:
    axes = [a for a in range(output.dim()) if a != unit.channel_axis % output.dim()]
    return output.float().mean(dim=axes)


def _over_processes(mean: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
    return mean


def correctable_bias(unit: LayerCall) -> Tensor | None:
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
        self.units = layer_calls(model)
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


@torch.no_grad()
def correct_biases(model: GraphModel, batches: Sequence[tuple[Any, ...]]) -> list[str]:
    """Bring every layer's mean output per channel to its float value, one layer after the other.

    A layer is corrected when all in front of it are: what it still lacks is its own error and what
    quantizing its input adds. One pass in float, one over the quantized graph.

    Args:
        model: Prepared model whose activations have their ranges; in evaluation mode.
        batches: Inputs of the model, a tuple for each batch.

    Returns:
        Paths of the layers that were corrected: those with a bias or a batch norm.

    Reference: Nagel et al. 2019, https://arxiv.org/abs/1906.04721, section 4.2 and appendix D
        (empirical bias correction).
    """
    target = _ChannelMeans()
    with float_arithmetic(model), recorded_outputs(layer_calls(model), target):
        for batch in batches:
            model(*batch)
    wanted = target.result()
    corrected: list[str] = []
    steps = tqdm(
        sweep(model, batches), "bias correction", len(model.graph.nodes), leave=False, disable=None
    )
    for step in steps:
        unit = layer_call(model, step.node)
        bias = None if unit is None else correctable_bias(unit)
        if unit is None or bias is None or unit.path in corrected:
            continue
        half = added_half_step(unit.output_quantizer)
        means = [_channel_mean(unit, output - half) for output in step.outputs]
        found = _over_processes(torch.stack(means).mean(0))
        bias += wanted[unit.path] - found
        corrected.append(unit.path)
        step.recompute()
    return corrected


@torch.no_grad()
def correct_biases_analytically(model: GraphModel) -> list[str]:
    """Take back what rounding the weights shifts, as far as batch norm tells the mean input.

    ``b -= sum_c (Q(W) - W)_c E[x_c]`` with the mean of a normal variable of the batch norm's mean
    and deviation, after the ReLU (or ReLU6) behind it. No data is needed.

    Args:
        model: Prepared model.

    Returns:
        Paths of the layers that were corrected: those whose input a layer with a batch norm gives.

    Reference: Nagel et al. 2019, https://arxiv.org/abs/1906.04721, section 4.2 and appendix C.
    """
    made_by = {unit.node: unit for unit in layer_calls(model)}
    corrected = []
    for unit in made_by.values():
        bias = correctable_bias(unit)
        mean = _expected_input(model, unit, made_by)
        if bias is None or mean is None or unit.path in corrected:
            continue
        weight = unit.folded().weight
        error = unit.quantized_parameters()[0] - weight
        seen = unit.layer.input_channels(mean, error)
        bias -= unit.layer.rows(error * seen).sum(1)
        corrected.append(unit.path)
    return corrected


def _expected_input(
    model: GraphModel, unit: LayerCall, made_by: dict[fx.Node, LayerCall]
) -> Tensor | None:
    """Mean of a layer's input per channel, from the batch norm in front; None without one."""
    call = quantizer_of(model, unit.input_node)
    if call is None or call is not unit.input_node or not isinstance(call.args[0], fx.Node):
        return None
    producer, quantizer = made_by.get(call.args[0]), model.module_of(call)
    if producer is None or producer.batch_norm is None:
        return None
    norm = producer.batch_norm
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    assert isinstance(quantizer, FakeQuantize)
    if norm.weight is None or norm.bias is None:
        return None
    low = -math.inf if quantizer.bounds is None else quantizer.bounds[0]
    low = max(low, 0.0) if quantizer.spec.signed is False else low
    high = quantizer.upper_bounds(len(norm.bias)) if quantizer.has_upper_bound else None
    return clipped_normal_mean(norm.bias, norm.weight.abs(), low, high)


def clipped_normal_mean(mean: Tensor, deviation: Tensor, low: float, high: Tensor | None) -> Tensor:
    """Mean of ``clip(x, low, high)`` of normal `x`; shape and dtype of `mean`.

    Args:
        mean: Of each variable, shape ``(C,)``.
        deviation: Its standard deviation, shape ``(C,)``.
        low: Lower bound of all, or minus infinity.
        high: Upper bound of each, shape ``(C,)``; None: none.

    ``mu (P(b) - P(a)) + sigma (p(a) - p(b)) + low P(a) + high (1 - P(b))`` with the normal
    density `p` and distribution `P` at ``a = (low - mu) / sigma`` and ``b = (high - mu) / sigma``.
    """
    mu, sigma = mean.double(), deviation.double().clamp_min(1e-12)
    result = torch.zeros_like(mu)
    below, above = torch.zeros_like(mu), torch.ones_like(mu)
    if math.isfinite(low):
        a = (low - mu) / sigma
        below = torch.special.ndtr(a)
        result += low * below + sigma * _normal_density(a)
    if high is not None:
        b = (high - mu) / sigma
        above = torch.special.ndtr(b)
        result += high * (1 - above) - sigma * _normal_density(b)
    return (result + mu * (above - below)).to(mean.dtype)


def _normal_density(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi)
