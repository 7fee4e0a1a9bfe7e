"""Learned rounding: each weight goes up or down so that the output is nearest to float.

Layer by layer, or block by block: a block is what lies between two values through which everything
passes, a residual block for example.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from tqdm import tqdm

from edgeailite.quantization.graph.model import GraphModel
from edgeailite.quantization.graph.running import GraphRunner, NodeRun, input_values, sweep
from edgeailite.quantization.methods.bias_correction import correctable_bias
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.modules.layer_calls import (
    LayerCall,
    added_half_step,
    attribute,
    float_arithmetic,
    layer_call,
    layer_calls,
    quantizer_behind,
)
from edgeailite.quantization.modules.normalization import gain_and_offset

# Elements of a layer's input and output, together, that one iteration computes with.
ELEMENTS_PER_ITERATION = 1 << 19
LEARNING_RATE = 1e-2
# Layers that a block has at least.
LAYERS_PER_BLOCK = 2
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
    blocks: bool = False,
    iterations: int = 1000,
    seconds: float | None = None,
    seed: int = 0,
) -> list[str]:
    """Choose for each weight whether it is rounded up or down, layer by layer or block by block.

    The output behind the activation function, computed from what the quantized layers in front
    give, is brought nearest to the float model's: rounding makes up for the errors before it.
    ``w_q = s clamp(floor(w / s) + h(v))`` with ``h`` between 0 and 1, learned by gradient and drawn
    to one of them. The bias is learned along. The layers' weights become the rounded ones, their
    ranges stay fixed (``weight_range``).

    Args:
        model: Prepared model whose activations have their ranges; in evaluation mode.
        batches: Inputs of the model, a tuple for each batch.
        blocks: Learn the layers of a block together, by the block's output.
        iterations: Gradient steps per layer, or per block.
        seconds: Layers that are not reached by then keep their nearest rounding, and get fewer
            iterations as the end comes nearer; None: no limit.
        seed: Of the choice of images.

    Returns:
        Paths of the layers that were learned.

    Reference: Nagel et al. 2020, https://arxiv.org/abs/2004.10568, eq. 21 to 25; for blocks Li et
        al. 2021, https://arxiv.org/abs/2102.05426, section 3.2.
    """
    reference = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    found = {block.end: block for block in _blocks(model, LAYERS_PER_BLOCK if blocks else 1)}
    # The last block that reads each value.
    last_use = {node: block for block in found.values() for node in block.inputs}
    budget = _Budget(seconds, len(found), iterations)
    learned: list[str] = []
    title, unit = ("learned rounding", "block" if blocks else "layer")
    with (
        float_arithmetic(reference),
        tqdm(total=len(found), desc=title, unit=unit, leave=False, disable=None) as progress,
    ):
        kept = {n: values for n, values in input_values(model, batches).items() if n in last_use}
        steps = zip(sweep(model, batches), sweep(reference, batches), strict=True)
        for step, target in steps:
            block = found.get(step.node)
            if block is not None:
                progress.update()
                count = budget.iterations_of_next()
                units = [u for u in block.units if u.path not in learned]
                if units and count > 0:
                    _learn(block, units, kept, target, count, generator)
                    learned += [u.path for u in units]
                    _recompute(block, step, kept)
                for used in [n for n, last in last_use.items() if last is block]:
                    del kept[used]
            if step.node in last_use:
                kept[step.node] = step.outputs
    return learned


class _Block:
    """Operations whose layers are learned together, by the value of the last one.

    Args:
        model: Prepared model.
        nodes: The operations, in the order of the graph.
    """

    def __init__(self, model: GraphModel, nodes: list[fx.Node]) -> None:
        self.model, self.nodes, self.end = model, nodes, nodes[-1]
        self.units = [u for u in (layer_call(model, node) for node in nodes) if u is not None]
        read = (source for node in nodes for source in node.all_input_nodes)
        outside = [n for n in read if n not in nodes and n.op != "get_attr"]
        self.inputs = list(dict.fromkeys(outside))
        module = model.module_of(self.end)
        self.quantizer = module if isinstance(module, FakeQuantize) else None
        self._runner = GraphRunner(model)

    def run(self, values: dict[fx.Node, Any]) -> Any:
        """The last operation's value for given inputs."""
        values = dict(values)

        def value_of(node: fx.Node) -> Any:
            if node.op == "get_attr":
                return attribute(self.model, str(node.target))
            return values[node]

        for node in self.nodes:
            values[node] = self._runner.compute(node, value_of)
        return values[self.end]

    @contextmanager
    def in_float_at_the_end(self) -> Iterator[None]:
        """Inside, the last value is compared before it is rounded, behind its activation."""
        if self.quantizer is None:
            yield
            return
        self.quantizer.fake_quant_enabled = False
        try:
            yield
        finally:
            self.quantizer.fake_quant_enabled = True


def _blocks(model: GraphModel, num_layers: int) -> list[_Block]:
    """The parts of a graph with at least so many layers, cut where one value alone goes on."""
    if num_layers == 1:
        pairs = [(unit.node, quantizer_behind(model, unit.node)) for unit in layer_calls(model)]
        return [_Block(model, [node for node in pair if node is not None]) for pair in pairs]
    found: list[_Block] = []
    part: list[fx.Node] = []
    cuts = _cuts(model)
    for node in model.graph.nodes:
        if node.op in ("placeholder", "output", "get_attr"):
            continue
        part.append(node)
        if node in cuts and sum(layer_call(model, n) is not None for n in part) >= num_layers:
            found.append(_Block(model, part))
            part = []
    while part and not isinstance(model.module_of(part[-1]), FakeQuantize):
        part.pop()
    if any(layer_call(model, node) is not None for node in part):
        found.append(_Block(model, part))
    return found


def _cuts(model: GraphModel) -> set[fx.Node]:
    """Quantizers behind which nothing reads a value from before them."""
    order = {node: i for i, node in enumerate(model.graph.nodes)}
    found, last_read = set(), -1
    for node, position in order.items():
        if isinstance(model.module_of(node), FakeQuantize) and last_read <= position:
            found.add(node)
        if node.op != "get_attr":
            last_read = max([last_read, *(order[user] for user in node.users)])
    return found


def _recompute(block: _Block, step: NodeRun, kept: dict[fx.Node, list[Any]]) -> None:
    """Give the sweep what the block computes with its learned weights."""
    with torch.no_grad():
        step.outputs = [
            block.run({node: kept[node][index] for node in block.inputs})
            for index in range(len(step.outputs))
        ]


class _Budget:
    """Iterations of each layer or block, so that all together take a given time."""

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
    block: _Block,
    units: list[LayerCall],
    kept: dict[fx.Node, list[Any]],
    target: NodeRun,
    iterations: int,
    generator: torch.Generator,
) -> None:
    layers = [_SoftLayer(unit) for unit in units]
    optimizer = torch.optim.Adam([p for layer in layers for p in layer.parameters], LEARNING_RATE)
    with ExitStack() as stack:
        stack.enter_context(block.in_float_at_the_end())
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
    block: _Block,
    kept: dict[fx.Node, list[Any]],
    target: NodeRun,
    index: int,
    generator: torch.Generator,
) -> tuple[dict[fx.Node, Any], Tensor]:
    """As many images of a batch as one iteration computes with: the block's inputs and target."""
    values = {node: kept[node][index] for node in block.inputs}
    y = target.outputs[index]
    num_images = y.shape[0]
    elements = sum(v.numel() for v in (y, *values.values()) if isinstance(v, Tensor))
    per_image = elements * len(block.units) // num_images
    count = min(num_images, max(1, ELEMENTS_PER_ITERATION // per_image))
    chosen = torch.randperm(num_images, generator=generator)[:count]
    return {n: v[chosen] if isinstance(v, Tensor) else v for n, v in values.items()}, y[chosen]


class _SoftLayer:
    """A layer whose weights are between two grid points while they are learned."""

    def __init__(self, unit: LayerCall) -> None:
        self.unit, layer = unit, unit.layer
        with torch.no_grad():
            weight, bias, self.scale = unit.folded()
            self.steps = layer.channels(self.scale, weight)
            self.floor = torch.floor(weight / self.steps)
            part = (weight / self.steps - self.floor).clamp(0.01, 0.99)
            # The inverse of the rectified sigmoid: learning begins at the float weight.
            start = torch.logit((part + _REACH) / (1 + 2 * _REACH))
        self.v = start.clone().requires_grad_()
        self.learns_bias = correctable_bias(unit) is not None
        self.shift = torch.zeros_like(self.scale).requires_grad_(self.learns_bias)
        self.base = torch.zeros_like(self.scale) if bias is None else bias.detach()

    @property
    def parameters(self) -> list[Tensor]:
        """What is learned."""
        return [self.v, self.shift] if self.learns_bias else [self.v]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model computes with the soft weights."""
        self.unit.layer.compute = self._compute  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            del self.unit.layer.compute

    def _compute(self, x: Tensor, *_: Any) -> Tensor:
        layer, spec = self.unit.layer, self.unit.layer.weight_spec
        rounded = (self.floor + _rectified(self.v)).clamp(spec.quant_min, spec.quant_max)
        y = layer.operate(x, rounded * self.steps, None)
        shape = [1] * y.dim()
        shape[self.unit.channel_axis] = -1
        half_step = added_half_step(self.unit.output_quantizer)
        return y + (self.base + self.shift + half_step).reshape(shape)

    def undecided(self, sharpness: float) -> Tensor:
        """How far weights are from either grid point, 0 to 1."""
        return (1 - (2 * _rectified(self.v) - 1).abs().pow(sharpness)).mean()

    @torch.no_grad()
    def store(self) -> None:
        """Make the rounded weight the layer's own, on the same grid, and its bias the learned."""
        unit, layer, scale, shift = self.unit, self.unit.layer, self.scale, self.shift.detach()
        spec = layer.weight_spec
        rounded = (self.floor + (_rectified(self.v) >= 0.5)).clamp(spec.quant_min, spec.quant_max)
        if unit.input_quantizer is not None and not layer.bias_spec.is_float:
            # A bias that outgrows its integer would coarsen the weight's grid.
            limit = unit.input_quantizer.qparams().scale * scale * (layer.bias_limit - 1)
            total = torch.maximum(torch.minimum(self.base + shift, limit), -limit)
            shift = total - self.base
        weight = rounded * self.steps
        gain = None if unit.batch_norm is None else gain_and_offset(unit.batch_norm)[0]
        if gain is not None:
            divisor = layer.channels(torch.where(gain == 0, torch.ones_like(gain), gain), weight)
            weight = torch.where(divisor == 0, unit.weight, weight / divisor)
        layer.set_weight_range(_range_of(scale, layer))
        unit.weight.copy_(weight)
        bias = correctable_bias(unit)
        if bias is not None:
            bias += shift


def _rectified(v: Tensor) -> Tensor:
    """``clip(sigmoid(v) (1 + 2 r) - r, 0, 1)``."""
    return (torch.sigmoid(v) * (1 + 2 * _REACH) - _REACH).clamp(0.0, 1.0)


def _range_of(scale: Tensor, layer: Any) -> Tensor:
    """The magnitudes that give these steps again: a little less, as steps are rounded up."""
    spec = layer.weight_spec
    steps = spec.quant_max if not spec.power_of_two else 1 << spec.quant_max.bit_length()
    return scale * (steps * (1 - 2.0**-20))
