"""Analytic bias correction: take back what rounding the weights shifts, without data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from edgeailite.quantization.graph.model import module_of
from edgeailite.quantization.graph.patterns import quantizer_of
from edgeailite.quantization.methods.bias_fitting import correctable_bias
from edgeailite.quantization.methods.registry import Batches, post_training_method
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.modules.layer_calls import LayerCall, layer_calls

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel


@post_training_method("analytic_biases")
@torch.no_grad()
def correct_biases_analytically(model: GraphModel, batches: Batches = ()) -> list[str]:
    """Take back what rounding the weights shifts, as far as batch norm tells the mean input.

    ``b -= sum_c (Q(W) - W)_c E[x_c]`` with the mean of a normal variable of the batch norm's mean
    and deviation, after the ReLU (or ReLU6) behind it.

    Args:
        model: Prepared model.
        batches: Not read; methods are called with them.

    Returns:
        Paths of the layers that were corrected: those whose input a layer with a batch norm gives.

    Reference: Nagel et al. 2019, https://arxiv.org/abs/1906.04721, section 4.2 and appendix C.
    """
    made_by = {call.node: call for call in layer_calls(model)}
    corrected = []
    for call in made_by.values():
        bias = correctable_bias(call)
        mean = _expected_input(model, call, made_by)
        if bias is None or mean is None or call.path in corrected:
            continue
        weight = call.folded().weight
        error = call.quantized_parameters()[0] - weight
        seen = call.layer.input_channels(mean, error)
        bias -= call.layer.rows(error * seen).sum(1)
        corrected.append(call.path)
    return corrected


def _expected_input(
    model: GraphModel, call: LayerCall, made_by: dict[fx.Node, LayerCall]
) -> Tensor | None:
    """Mean of a layer's input per channel, from the batch norm in front; None without one."""
    node = quantizer_of(call.input_node)
    if node is None or node is not call.input_node or not isinstance(node.args[0], fx.Node):
        return None
    producer, quantizer = made_by.get(node.args[0]), module_of(model, node)
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
