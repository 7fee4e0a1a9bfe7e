"""Learned rounding: each weight goes up or down so that the layer's output is nearest to float."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from tqdm import tqdm

from edgeailite.quantization.bias_correction import correctable_bias
from edgeailite.quantization.fake_quantize import FakeQuantize
from edgeailite.quantization.fold import batch_norm_gain
from edgeailite.quantization.graph import GraphModel
from edgeailite.quantization.sweep import SweepStep, sweep
from edgeailite.quantization.units import LayerUnit, float_arithmetic, layer_unit

# Elements of the layer's input and output, together, that one iteration computes with.
ELEMENTS_PER_ITERATION = 1 << 19
LEARNING_RATE = 1e-2
# Of the rectified sigmoid: how far it reaches beyond 0 and 1.
_REACH = 0.1
# The pull towards 0 and 1 begins after this part of the iterations, and grows sharper.
_WARM_UP = 0.2
_SHARPNESS = (20.0, 2.0)
_PULL = 0.1


def learn_rounding(
    model: GraphModel,
    batches: Sequence[tuple[Any, ...]],
    *,
    iterations: int = 1000,
    seconds: float | None = None,
    seed: int = 0,
) -> list[str]:
    """Choose for each weight whether it is rounded up or down, layer by layer.

    The layer's output behind its activation function, computed from what the quantized layers in
    front give, is brought nearest to the float model's: rounding makes up for the errors before it.
    ``w_q = s clamp(floor(w / s) + h(v))`` with ``h`` between 0 and 1, learned by gradient and drawn
    to one of them. The bias is learned along. The layers' weights become the rounded ones, their
    ranges stay fixed (``weight_range``).

    Args:
        model: Prepared model whose activations have their ranges; in evaluation mode.
        batches: Inputs of the model, a tuple for each batch.
        iterations: Gradient steps per layer.
        seconds: Layers that are not reached by then keep their nearest rounding, and get fewer
            iterations as the end comes nearer; None: no limit.
        seed: Of the choice of images.

    Returns:
        Paths of the layers that were learned.

    Reference: Nagel et al. 2020, https://arxiv.org/abs/2004.10568, eq. 21 to 25.
    """
    reference = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    nodes = [n for n in model.graph.nodes if layer_unit(model, n) is not None]
    budget = _Budget(seconds, len(nodes), iterations)
    learned: list[str] = []
    with (
        float_arithmetic(reference),
        tqdm(
            total=len(nodes), desc="learned rounding", unit="layer", leave=False, disable=None
        ) as progress,
    ):
        steps = zip(sweep(model, batches), sweep(reference, batches), strict=True)
        for step, target in steps:
            unit = layer_unit(model, step.node)
            if unit is None:
                continue
            progress.update()
            count = budget.iterations_of_next()
            if unit.path in learned or count == 0:
                continue
            _learn(model, unit, step, target, count, generator)
            learned.append(unit.path)
            step.recompute()
    return learned


class _Budget:
    """Iterations of each layer, so that all layers together take a given time."""

    def __init__(self, seconds: float | None, num_layers: int, iterations: int) -> None:
        self.seconds, self.left, self.iterations = seconds, num_layers, iterations
        self.started = time.monotonic()
        self.done = 0

    def iterations_of_next(self) -> int:
        """At most what was asked for; fewer where the time would not do for the layers left."""
        count = self.iterations
        if self.seconds is not None and self.done:
            spent = time.monotonic() - self.started
            per_iteration = spent / self.done
            affordable = (self.seconds - spent) / per_iteration / self.left
            count = int(min(count, max(affordable, 0.0)))
        self.left -= 1
        self.done += count
        return count


def _learn(
    model: GraphModel,
    unit: LayerUnit,
    step: SweepStep,
    target: SweepStep,
    iterations: int,
    generator: torch.Generator,
) -> None:
    layer, spec = unit.layer, unit.layer.weight_spec
    with torch.no_grad():
        weight, bias, scale = unit.folded()
        steps = layer.channels(scale, weight)
        floor = torch.floor(weight / steps)
        part = (weight / steps - floor).clamp(0.01, 0.99)
        # The inverse of the rectified sigmoid: learning begins at the float weight.
        start = torch.logit((part + _REACH) / (1 + 2 * _REACH))
    v = start.clone().requires_grad_()
    shift = torch.zeros_like(scale).requires_grad_()
    activation = _activation_behind(model, unit.node)
    inputs, outputs = step.inputs_of(unit.input_node), target.outputs
    optimizer = torch.optim.Adam([v, shift], LEARNING_RATE)
    base = torch.zeros_like(scale) if bias is None else bias.detach()
    learns_bias = correctable_bias(unit) is not None
    shape = [1] * outputs[0].dim()
    shape[unit.channel_axis] = -1
    for iteration in range(iterations):
        index = int(torch.randint(len(inputs), (), generator=generator))
        x, y = _some_images(inputs[index], outputs[index], generator)
        soft = _rectified(v)
        quantized = (floor + soft).clamp(spec.quant_min, spec.quant_max) * steps
        found = layer.operate(x, quantized, None) + (base + shift).reshape(shape)
        loss = (activation(found) - activation(y)).square().mean()
        loss = loss / activation(y).square().mean().clamp_min(1e-12)
        progress = iteration / iterations
        if progress > _WARM_UP:
            share = (progress - _WARM_UP) / (1 - _WARM_UP)
            sharpness = _SHARPNESS[0] + (_SHARPNESS[1] - _SHARPNESS[0]) * share
            loss = loss + _PULL * (1 - (2 * soft - 1).abs().pow(sharpness)).mean()
        optimizer.zero_grad()
        loss.backward()
        if not learns_bias:
            shift.grad = None
        optimizer.step()
    with torch.no_grad():
        rounded = (floor + (_rectified(v) >= 0.5)).clamp(spec.quant_min, spec.quant_max)
        if unit.input_quantizer is not None and not layer.bias_spec.is_float:
            # A bias that outgrows its integer would coarsen the weight's grid.
            limit = unit.input_quantizer.qparams().scale * scale * (layer.bias_limit - 1)
            shift.copy_(torch.maximum(torch.minimum(base + shift, limit), -limit) - base)
        _store(unit, rounded * steps, scale, shift)


def _rectified(v: Tensor) -> Tensor:
    """``clip(sigmoid(v) (1 + 2 r) - r, 0, 1)``."""
    return (torch.sigmoid(v) * (1 + 2 * _REACH) - _REACH).clamp(0.0, 1.0)


def _some_images(x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """As many images of a batch as one iteration computes with."""
    per_image = (x.numel() + y.numel()) // x.shape[0]
    count = min(x.shape[0], max(1, ELEMENTS_PER_ITERATION // per_image))
    chosen = torch.randperm(x.shape[0], generator=generator)[:count]
    return x[chosen], y[chosen]


def _activation_behind(model: GraphModel, node: fx.Node) -> Any:
    """What the quantizer behind a layer clips to, in float; the identity without one."""
    user = next(iter(node.users), None)
    quantizer = None if user is None else model.module_of(user)
    return quantizer.float_activation if isinstance(quantizer, FakeQuantize) else nn.Identity()


def _store(unit: LayerUnit, weight: Tensor, scale: Tensor, shift: Tensor) -> None:
    """Make the rounded weight the layer's own, on the same grid."""
    layer = unit.layer
    gain = None if unit.batch_norm is None else batch_norm_gain(unit.batch_norm)[0]
    if gain is not None:
        divisor = layer.channels(torch.where(gain == 0, torch.ones_like(gain), gain), weight)
        weight = torch.where(divisor == 0, unit.weight, weight / divisor)
    layer.set_weight_range(_range_of(scale, layer))
    unit.weight.copy_(weight)
    bias = correctable_bias(unit)
    if bias is not None:
        bias += shift


def _range_of(scale: Tensor, layer: Any) -> Tensor:
    """The magnitudes that give these steps again: a little less, as steps are rounded up."""
    spec = layer.weight_spec
    steps = spec.quant_max if not spec.power_of_two else 1 << spec.quant_max.bit_length()
    return scale * (steps * (1 - 2.0**-20))
