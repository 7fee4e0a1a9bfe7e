"""Learned rounding: round each weight up or down so that the output is nearest to float.

Layer by layer, or block by block: a block is what lies between two values through which everything
passes, a residual block for example.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from tqdm import tqdm

from edgeailite.quantization.graph.running import NodeRun, input_values, sweep
from edgeailite.quantization.methods.blocks import Block, find_blocks
from edgeailite.quantization.methods.channel_means import correctable_bias
from edgeailite.quantization.methods.registry import Batches, post_training_method
from edgeailite.quantization.methods.stored_weights import shift_bias, store_weight
from edgeailite.quantization.modules.layer_calls import (
    LayerCall,
    added_half_scale,
    float_copy,
)

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel

# Of the registered methods: iterations of each layer or block, and time of all.
ITERATIONS = 2000
SECONDS = 480.0
# Elements of a layer's input and output, together, that one iteration computes with.
ELEMENTS_PER_ITERATION = 1 << 19
LEARNING_RATE = 1e-2
# Smallest number of layers of a block.
LAYERS_PER_BLOCK = 2
# Of the rectified sigmoid: how far it reaches beyond 0 and 1.
_REACH = 0.1
# The pull towards 0 and 1 begins after this part of the iterations, and grows sharper.
_WARM_UP = 0.2
_SHARPNESS = (20.0, 2.0)
_PULL = 0.1


def learn_rounding(
    model: GraphModel,
    batches: Batches,
    *,
    blocks: bool = False,
    iterations: int = 1000,
    seconds: float | None = None,
    seed: int = 0,
    reference: GraphModel | None = None,
) -> list[str]:
    """Round each weight up or down, as learned layer by layer or block by block.

    The output behind the activation function is brought nearest to the float model's. It is
    computed from the outputs of the quantized layers in front, so that rounding makes up for the
    errors before it. ``w_q = s clamp(floor(w / s) + h(v))`` with ``h`` between 0 and 1, learned by
    gradient and drawn to one of them. The bias is learned along. The layers' weights become the
    rounded ones, their ranges stay fixed (``weight_range``).

    Args:
        model: Prepared model whose activations have their ranges; in evaluation mode.
        batches: Inputs of the model, a tuple for each batch.
        blocks: Learn the layers of a block together, by the block's output.
        iterations: Gradient steps per layer, or per block.
        seconds: Time limit. Layers get fewer iterations as it comes nearer; those that are not
            reached by then keep their nearest rounding. None: no limit.
        seed: Of the choice of images.
        reference: The model in float; None: `model` as it is.

    Returns:
        Paths of the layers that were learned.

    Reference: Nagel et al. 2020, https://arxiv.org/abs/2004.10568, eq. 21 to 25; for blocks Li et
        al. 2021, https://arxiv.org/abs/2102.05426, section 3.2.
    """
    reference = reference or float_copy(model)
    generator = torch.Generator().manual_seed(seed)
    found = {block.end: block for block in find_blocks(model, LAYERS_PER_BLOCK if blocks else 1)}
    # The last block that reads each value.
    last_use = {node: block for block in found.values() for node in block.inputs}
    budget = _Budget(seconds, len(found), iterations)
    learned: list[str] = []
    part = "block" if blocks else "layer"
    progress = tqdm(None, "learned rounding", len(found), unit=part, leave=False, disable=None)
    with progress:
        kept = {n: values for n, values in input_values(model, batches).items() if n in last_use}
        runs = zip(sweep(model, batches), sweep(reference, batches), strict=True)
        for run, target in runs:
            block = found.get(run.node)
            if block is not None:
                progress.update()
                count = budget.iterations_of_next()
                calls = [c for c in block.calls if c.path not in learned and c.has_own_weight]
                if calls and count > 0:
                    _learn(block, calls, kept, target, count, generator)
                    learned += [call.path for call in calls]
                    _recompute(block, run, kept)
                for used in [n for n, last in last_use.items() if last is block]:
                    del kept[used]
            if run.node in last_use:
                kept[run.node] = run.outputs
    return learned


def _recompute(block: Block, run: NodeRun, kept: dict[fx.Node, list[Any]]) -> None:
    """Replace the outputs of a block's end by those of its learned weights."""
    with torch.no_grad():
        run.outputs = [
            block.run({node: kept[node][index] for node in block.inputs})
            for index in range(len(run.outputs))
        ]


@post_training_method("learned_rounding")
def learn_layer_rounding(
    model: GraphModel, batches: Batches, reference: GraphModel | None = None
) -> list[str]:
    """Learn rounding layer by layer for at most 8 minutes; see :func:`learn_rounding`."""
    return learn_rounding(
        model, batches, iterations=ITERATIONS, seconds=SECONDS, reference=reference
    )


@post_training_method("block_rounding")
def learn_block_rounding(
    model: GraphModel, batches: Batches, reference: GraphModel | None = None
) -> list[str]:
    """Learn rounding block by block for at most 8 minutes; see :func:`learn_rounding`."""
    return learn_rounding(
        model, batches, blocks=True, iterations=ITERATIONS, seconds=SECONDS, reference=reference
    )


class _Budget:
    """Iterations of each layer or block, so that all together take a given time."""

    def __init__(self, seconds: float | None, num_layers: int, iterations: int) -> None:
        self.seconds, self.left, self.iterations = seconds, num_layers, iterations
        self.started = time.monotonic()
        self.done = 0

    def iterations_of_next(self) -> int:
        """Return the iterations of the next layer: fewer if the time left is short."""
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
    block: Block,
    calls: list[LayerCall],
    kept: dict[fx.Node, list[Any]],
    target: NodeRun,
    iterations: int,
    generator: torch.Generator,
) -> None:
    layers = [_SoftLayer(call) for call in calls]
    optimizer = torch.optim.Adam([p for layer in layers for p in layer.parameters], LEARNING_RATE)
    with ExitStack() as stack:
        stack.enter_context(block.float_at_the_end())
        for layer in layers:
            stack.enter_context(layer.in_place())
        for iteration in range(iterations):
            index = int(torch.randint(len(target.outputs), (), generator=generator))
            values, y = _some_images(block, kept, target, index, generator)
            found = block.run(values)
            loss = (found - y).square().mean() / y.square().mean().clamp_min(1e-12)
            progress = iteration / iterations
            if progress > _WARM_UP:
                share = (progress - _WARM_UP) / (1 - _WARM_UP)
                sharpness = _SHARPNESS[0] + (_SHARPNESS[1] - _SHARPNESS[0]) * share
                loss = loss + _PULL * sum(layer.undecided(sharpness) for layer in layers)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for layer in layers:
        layer.store()


def _some_images(
    block: Block,
    kept: dict[fx.Node, list[Any]],
    target: NodeRun,
    index: int,
    generator: torch.Generator,
) -> tuple[dict[fx.Node, Any], Tensor]:
    """Choose the images of a batch for one iteration: the block's inputs and its target."""
    values = {node: kept[node][index] for node in block.inputs}
    y = target.outputs[index]
    num_images = y.shape[0]
    elements = sum(v.numel() for v in (y, *values.values()) if isinstance(v, Tensor))
    per_image = elements * len(block.calls) // num_images
    count = min(num_images, max(1, ELEMENTS_PER_ITERATION // per_image))
    chosen = torch.randperm(num_images, generator=generator)[:count]
    return {n: v[chosen] if isinstance(v, Tensor) else v for n, v in values.items()}, y[chosen]


class _SoftLayer:
    """A layer whose weights are between two grid points while they are learned."""

    def __init__(self, call: LayerCall) -> None:
        self.call, layer = call, call.layer
        with torch.no_grad():
            weight, bias, self.scale = call.folded()
            self.weight_scale = layer.channels(self.scale, weight)
            self.floor = torch.floor(weight / self.weight_scale)
            part = (weight / self.weight_scale - self.floor).clamp(0.01, 0.99)
            # The inverse of the rectified sigmoid: learning begins at the float weight.
            start = torch.logit((part + _REACH) / (1 + 2 * _REACH))
        self.v = start.clone().requires_grad_()
        self.learns_bias = correctable_bias(call) is not None
        self.shift = torch.zeros_like(self.scale).requires_grad_(self.learns_bias)
        self.base = torch.zeros_like(self.scale) if bias is None else bias.detach()

    @property
    def parameters(self) -> list[Tensor]:
        """Tensors that are learned."""
        return [self.v, self.shift] if self.learns_bias else [self.v]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model compute with the soft weights."""
        with self.call.layer.computing_with(self._compute):
            yield

    def _compute(self, x: Tensor, *rest: Any) -> Tensor:
        layer, spec = self.call.layer, self.call.layer.weight_quantizer.spec
        rounded = (self.floor + _rectified(self.v)).clamp(spec.quant_min, spec.quant_max)
        y = layer.operate(x, rounded * self.weight_scale, None, output_size=rest[-1])
        shape = [1] * y.dim()
        shape[self.call.channel_axis] = -1
        half_scale = added_half_scale(self.call.output_quantizer)
        return y + (self.base + self.shift + half_scale).reshape(shape)

    def undecided(self, sharpness: float) -> Tensor:
        """Mean distance of the weights from either grid point, 0 to 1."""
        return (1 - (2 * _rectified(self.v) - 1).abs().pow(sharpness)).mean()

    @torch.no_grad()
    def store(self) -> None:
        """Make the rounded weight the layer's own, on the same grid, and its bias the learned."""
        call, layer, scale, shift = self.call, self.call.layer, self.scale, self.shift.detach()
        spec = layer.weight_quantizer.spec
        rounded = (self.floor + (_rectified(self.v) >= 0.5)).clamp(spec.quant_min, spec.quant_max)
        store_weight(call, rounded * self.weight_scale, scale)
        shift_bias(call, shift, scale)


def _rectified(v: Tensor) -> Tensor:
    """``clip(sigmoid(v) (1 + 2 r) - r, 0, 1)``."""
    return (torch.sigmoid(v) * (1 + 2 * _REACH) - _REACH).clamp(0.0, 1.0)
