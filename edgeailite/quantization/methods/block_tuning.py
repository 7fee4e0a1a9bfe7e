"""Block-wise tuning: weights, biases and ranges of a block bring its output nearest to float.

A block is what lies between two values through which everything passes, a residual block for
example.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from tqdm import tqdm

from edgeailite.quantization.arithmetic.rounding import straight_through
from edgeailite.quantization.graph.model import module_of
from edgeailite.quantization.graph.running import NodeRun, input_values, sweep
from edgeailite.quantization.methods.bias_fitting import correctable_bias
from edgeailite.quantization.methods.blocks import Block, find_blocks
from edgeailite.quantization.methods.images import split
from edgeailite.quantization.methods.registry import Batches, post_training_method
from edgeailite.quantization.methods.stored_weights import shift_bias, store_weight
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.modules.layer_calls import (
    LayerCall,
    added_half_scale,
    float_copy,
    output_quantizer,
)

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel

# Of the registered method: iterations of each block, and time of all.
ITERATIONS = 1000
SECONDS = 480.0
# Elements of a block's inputs and output, together, that one iteration computes with.
ELEMENTS_PER_ITERATION = 1 << 19
# Smallest number of layers of a block.
LAYERS_PER_BLOCK = 2
# Per iteration: steps of a weight's grid, and of the activation's for a bias.
LEARNING_RATE = 2e-3
# Part of the values at a block's inputs that are the float ones.
FLOAT_PART = 0.5
# Iterations between two looks at the held-out images, and looks without a gain that end a block.
_LOOK_EVERY = 50
_PATIENCE = 6
# Parts of a range that are tried, with free scales and with powers of two.
_PARTS_FREE, _PARTS_OF_TWO = (0.9, 1.1), (0.5, 2.0)

Values = dict[fx.Node, list[Any]]


def tune_blocks(
    model: GraphModel,
    batches: Batches,
    reference: GraphModel | None = None,
    *,
    iterations: int = 1000,
    seconds: float | None = None,
    seed: int = 0,
) -> list[str]:
    """Tune weights, biases and ranges block by block, so that each output is nearest to float.

    A block computes from what the quantized blocks in front give, or the float values in their
    place, value by value at random; its output behind the activation function is compared with the
    float block's. Weights move in steps of their grid, which they keep, by the straight-through
    gradient; biases are learned along, and the ranges within the block may grow or shrink. Every
    fourth image is held out: a block ends in its best state on those, which may be the one that it
    began in.

    Args:
        model: Prepared model whose activations have their ranges; in evaluation mode.
        batches: Inputs of the model, a tuple for each batch. Values of all images are kept.
        reference: The model in float; None: `model` as it is.
        iterations: Gradient steps per block, at most.
        seconds: Time limit. Blocks get fewer iterations as it comes nearer; those that are not
            reached by then stay as they are. None: no limit.
        seed: Of the choice of images and values.

    Returns:
        Paths of the layers whose weights were tuned.

    Reference: Li et al. 2021, https://arxiv.org/abs/2102.05426 (blocks); Wei et al. 2022,
        https://arxiv.org/abs/2203.05740 (float values at random); Hubara et al. 2021,
        https://arxiv.org/abs/2006.10518 (weights that move by more than their rounding).
    """
    learned, held = split(batches)
    batches, reference = [*learned, *held], reference or float_copy(model)
    generator = torch.Generator().manual_seed(seed)
    found = {block.end: block for block in find_blocks(model, LAYERS_PER_BLOCK)}
    # The last block that reads each value.
    last_use = {node: block for block in found.values() for node in block.inputs}
    budget = _Budget(seconds, len(found), iterations)
    tuned: list[str] = []
    progress = tqdm(None, "tuning", len(found), unit="block", leave=False, disable=None)
    kept = {n: values for n, values in input_values(model, batches).items() if n in last_use}
    floats = dict(kept)
    with progress:
        for run, target in zip(sweep(model, batches), sweep(reference, batches), strict=True):
            block = found.get(run.node)
            if block is not None:
                progress.update()
                calls = [c for c in block.calls if c.path not in tuned and c.has_own_weight]
                count = budget.iterations_of_next()
                if calls and count > 0:
                    data = _Data(block, kept, floats, target.outputs, len(learned), generator)
                    layers = [_TunedLayer(model, call) for call in calls]
                    tuned += [call.path for call in calls] if _tune(data, layers, count) else []
                    _recompute(block, run, kept)
                for used in [n for n, last in last_use.items() if last is block]:
                    del kept[used], floats[used]
            if run.node in last_use:
                kept[run.node] = run.outputs
                floats[run.node] = target.outputs
    return tuned


@post_training_method("block_tuning")
def tune_all_blocks(
    model: GraphModel, batches: Batches, reference: GraphModel | None = None
) -> list[str]:
    """Tune blocks for at most 8 minutes; see :func:`tune_blocks`."""
    return tune_blocks(model, batches, reference, iterations=ITERATIONS, seconds=SECONDS)


def _recompute(block: Block, run: NodeRun, kept: Values) -> None:
    """Replace the outputs of a block's end by those of its tuned weights."""
    with torch.no_grad():
        run.outputs = [
            block.run({node: kept[node][index] for node in block.inputs})
            for index in range(len(run.outputs))
        ]


class _Budget:
    """Iterations of each block, so that all together take a given time."""

    def __init__(self, seconds: float | None, num_blocks: int, iterations: int) -> None:
        self.seconds, self.left, self.iterations = seconds, num_blocks, iterations
        self.started = time.monotonic()
        self.done = 0

    def iterations_of_next(self) -> int:
        """Return the iterations of the next block: fewer if the time left is short."""
        count = self.iterations
        if self.seconds is not None and self.done:
            spent = time.monotonic() - self.started
            per_iteration = spent / self.done
            affordable = (self.seconds - spent) / per_iteration / self.left
            count = int(min(count, max(affordable, 0.0)))
        self.left -= 1
        self.done += count
        return count


class _Data:
    """Inputs of a block, quantized and in float, and its float outputs.

    Args:
        block: The block.
        kept: Quantized inputs of each batch.
        floats: The same in float.
        outputs: Float outputs of each batch.
        num_learned: Batches to learn from; the others are held out.
        generator: Draws images and values.
    """

    def __init__(
        self,
        block: Block,
        kept: Values,
        floats: Values,
        outputs: list[Tensor],
        num_learned: int,
        generator: torch.Generator,
    ) -> None:
        self.block, self.kept, self.floats, self.outputs = block, kept, floats, outputs
        self.num_learned, self.generator = num_learned, generator
        self.energy = sum(float(y.square().mean()) for y in outputs) / len(outputs)

    def loss(self, values: dict[fx.Node, Any], wanted: Tensor) -> Tensor:
        """Mean squared error of the block's output, as a part of its mean square."""
        return (self.block.run(values) - wanted).square().mean() / max(self.energy, 1e-12)

    def draw(self) -> tuple[dict[fx.Node, Any], Tensor]:
        """Choose the images of an iteration: inputs, in part in float, and the wanted output."""
        index = int(torch.randint(self.num_learned, (), generator=self.generator))
        y = self.outputs[index]
        values = {node: self.kept[node][index] for node in self.block.inputs}
        elements = sum(v.numel() for v in (y, *values.values()) if isinstance(v, Tensor))
        per_image = elements * len(self.block.calls) // len(y)
        count = min(len(y), max(1, ELEMENTS_PER_ITERATION // per_image))
        chosen = torch.randperm(len(y), generator=self.generator)[:count].to(y.device)
        mixed = {n: self._mixed(v, self.floats[n][index], chosen) for n, v in values.items()}
        return mixed, y[chosen]

    def _mixed(self, quantized: Any, real: Any, chosen: Tensor) -> Any:
        if not isinstance(quantized, Tensor):
            return quantized
        quantized, real = quantized[chosen], real[chosen]
        if not quantized.is_floating_point():
            return quantized
        drawn = torch.rand(quantized.shape, generator=self.generator).to(quantized.device)
        return torch.where(drawn < FLOAT_PART, real, quantized)

    @torch.no_grad()
    def held_error(self) -> float:
        """Loss on the held-out images, all inputs quantized."""
        losses = [
            float(self.loss({n: self.kept[n][i] for n in self.block.inputs}, self.outputs[i]))
            for i in range(self.num_learned, len(self.outputs))
        ]
        return sum(losses) / len(losses)


def _tune(data: _Data, layers: list[_TunedLayer], iterations: int) -> bool:
    """Tune a block; return True if its weights changed: they are better on held-out images."""
    with data.block.float_at_the_end():
        best = _tune_ranges(data, data.held_error())
        with ExitStack() as stack:
            for layer in layers:
                stack.enter_context(layer.in_place())
            is_better = _learn(data, layers, iterations, best) < best
    for layer in layers if is_better else ():
        layer.store()
    return is_better


def _tune_ranges(data: _Data, error: float) -> float:
    """Move the ranges within a block where that helps; return the error on held-out images."""
    block = data.block
    inner = [module_of(block.model, node) for node in block.nodes[:-1]]
    for quantizer in inner:
        if not isinstance(quantizer, FakeQuantize) or quantizer.spec.fixed_range is not None:
            continue
        for part in _PARTS_OF_TWO if quantizer.spec.power_of_two else _PARTS_FREE:
            before = quantizer.clips_act.detach().clone()
            with torch.no_grad():
                quantizer.clips_act *= part
            found = data.held_error()
            if found < error and not quantizer.clips_inside():
                error = found
                break
            with torch.no_grad():
                quantizer.clips_act.copy_(before)
    return error


def _learn(data: _Data, layers: list[_TunedLayer], iterations: int, error: float) -> float:
    """Move the parameters of layers; they end in their best state. Return its error."""
    optimizer = torch.optim.Adam([p for layer in layers for p in layer.parameters], LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    best, without_gain = [layer.state() for layer in layers], 0
    for iteration in range(1, iterations + 1):
        optimizer.zero_grad()
        data.loss(*data.draw()).backward()
        optimizer.step()
        schedule.step()
        if iteration % _LOOK_EVERY and iteration < iterations:
            continue
        found = data.held_error()
        without_gain += 1
        if found < error:
            error, without_gain = found, 0
            best = [layer.state() for layer in layers]
        if without_gain == _PATIENCE:
            break
    for layer, state in zip(layers, best, strict=True):
        layer.restore(state)
    return error


class _TunedLayer:
    """A layer whose weights move in steps of their grid."""

    def __init__(self, model: GraphModel, call: LayerCall) -> None:
        self.call, layer = call, call.layer
        with torch.no_grad():
            weight, bias, self.scale = call.folded()
            self.weight_scale = layer.channels(self.scale, weight)
            spec = layer.weight_quantizer.spec
            self.limits = spec.quant_min, spec.quant_max
            steps = (weight / self.weight_scale).clamp(*self.limits)
            self.base = torch.zeros_like(self.scale) if bias is None else bias.detach().clone()
        self.steps = steps.clone().requires_grad_()
        self.learns_bias = correctable_bias(call) is not None
        self.shift = torch.zeros_like(self.scale).requires_grad_(self.learns_bias)
        self.unit = _unit(model, call, self.base)

    @property
    def parameters(self) -> list[Tensor]:
        """Tensors that are learned."""
        return [self.steps, self.shift] if self.learns_bias else [self.steps]

    def state(self) -> list[Tensor]:
        """Return a copy of the parameters."""
        return [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def restore(self, state: list[Tensor]) -> None:
        """Take a state of the parameters."""
        for parameter, value in zip(self.parameters, state, strict=True):
            parameter.copy_(value)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model compute with these weights."""
        with self.call.layer.computing_with(self._compute):
            yield

    def _weight(self) -> Tensor:
        steps = self.steps.clamp(*self.limits)
        return straight_through(steps, steps.round()) * self.weight_scale

    def _compute(self, x: Tensor, *rest: Any) -> Tensor:
        y = self.call.layer.operate(x, self._weight(), None, output_size=rest[-1])
        shape = [1] * y.dim()
        shape[self.call.channel_axis] = -1
        bias = self.base + self.shift * self.unit + added_half_scale(self.call.output_quantizer)
        return y + bias.reshape(shape)

    @torch.no_grad()
    def store(self) -> None:
        """Make the weight, on the same grid, and the bias the layer's own."""
        store_weight(self.call, self._weight(), self.scale)
        shift_bias(self.call, self.shift * self.unit, self.scale)


def _unit(model: GraphModel, call: LayerCall, bias: Tensor) -> Tensor | float:
    """Distance that a bias moves by for one: a step of the activation behind the layer."""
    quantizer = output_quantizer(model, call)
    if quantizer is not None:
        return quantizer.qparams().scale.detach()
    return max(float(bias.abs().mean()), math.ulp(1.0)) / 64
