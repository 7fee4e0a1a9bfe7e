"""Layers that make up for what quantization does to their inputs, weights and means."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, fx
from tqdm import tqdm

from edgeailite.quantization.arithmetic.least_squares import (
    damped_gram,
    ridge,
    round_with_feedback,
)
from edgeailite.quantization.arithmetic.qparams import weight_scale
from edgeailite.quantization.graph.model import graph_of
from edgeailite.quantization.graph.running import NodeRun, sweep, value_shapes
from edgeailite.quantization.methods.bias_fitting import (
    correctable_bias,
    fit_bias,
    some_outputs,
)
from edgeailite.quantization.methods.images import HELD_OUT_EVERY, num_images, split, spread
from edgeailite.quantization.methods.layer_rows import LayerRows, rows_of_batches
from edgeailite.quantization.methods.registry import Batches, post_training_method
from edgeailite.quantization.methods.stored_weights import (
    range_of,
    shift_bias,
    store_weight,
    within_integers,
)
from edgeailite.quantization.modules.bias import min_weight_scale
from edgeailite.quantization.modules.layer_calls import (
    LayerCall,
    activation_behind,
    added_half_scale,
    float_copy,
    layer_call,
    layer_calls,
)

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel

# Images that are learned from, fewer where their values would need more bytes than this.
IMAGES = 40
BYTES = 1 << 29
# Rows that a layer's least squares are summed over, at most by what they cost.
_ROWS = 4096
_ELEMENTS = 1 << 23
_PRODUCTS = 1 << 34
# Part of the mean square of a layer's inputs that draws its weights to the float ones.
_STRENGTHS = (0.01, 0.3)
# Finer grids of a whole tensor, as parts of its range.
_PARTS_OF_TENSOR = (0.5, 0.25)
# Rows that biases and errors are taken from.
_JUDGED_ROWS = 768


@post_training_method("least_squares")
@torch.no_grad()
def fit_layers(
    model: GraphModel, batches: Batches, reference: GraphModel | None = None
) -> list[str]:
    """Fit each layer to its float output, from the quantized values in front of it.

    The weights with the least squared error, drawn to the float ones, are put on their grid one
    input after the other, so that the next make up for the rounding of those before; the bias makes
    the mean behind the activation function right. How strongly they are drawn, whether a grid of a
    whole tensor covers the largest weights, and whether the nearest grid points are the better ones
    is decided for each layer by the error on every fourth image, which the fit does not see.

    Args:
        model: Prepared model whose activations have their ranges; in evaluation mode.
        batches: Inputs of the model, a tuple for each batch. Values of at most 40 images are kept.
        reference: The model in float; None: `model` as it is.

    Returns:
        Paths of the layers that were fitted. Transposed convolutions and layers whose weights are
        computed keep their weights; their biases are corrected.

    Reference: Frantar et al. 2022, https://arxiv.org/abs/2210.17323 (rounding); Nagel et al. 2019,
        https://arxiv.org/abs/1906.04721, section 4.2 (biases).
    """
    learned, held = split(spread(batches, _affordable_images(model, batches)))
    batches, wanted = [*learned, *held], reference or float_copy(model)
    fitted: list[str] = []
    calls = layer_calls(model)
    progress = tqdm(None, "least squares", len(calls), unit="layer", leave=False, disable=None)
    with progress:
        runs = zip(sweep(model, batches), sweep(wanted, batches), strict=True)
        for run, target in runs:
            call = layer_call(model, run.node)
            if call is None:
                continue
            progress.update()
            if call.path not in fitted:
                _fit(model, call, run, target, len(learned))
                fitted.append(call.path)
                run.recompute()
    return fitted


def _affordable_images(model: GraphModel, batches: Batches) -> int:
    """Images whose values, of both models, are kept at a time in the memory there is for them."""
    one = spread(batches, 1)
    shapes = value_shapes(model, one[0])
    nodes = graph_of(model).nodes
    last_use = {source: node for node in nodes for source in node.all_input_nodes}
    freed: dict[fx.Node, int] = {}
    for source, node in last_use.items():
        freed[node] = freed.get(node, 0) + (shapes[source].numel() if source in shapes else 0)
    made = [shapes[node].numel() if node in shapes else 0 for node in nodes]
    kept = accumulate(m - freed.get(node, 0) for node, m in zip(nodes, made, strict=True))
    largest = max(k + m for k, m in zip(kept, made, strict=True))
    return max(min(IMAGES, BYTES * num_images(one[0]) // (8 * largest)), HELD_OUT_EVERY)


class _Candidate(NamedTuple):
    """Parameters that a layer may get.

    Attributes:
        weight: In real units, shape ``(G, O, d)``.
        scale: Of the weight's grid, shape ``(C_out,)``.
        bias: Shape ``(C_out,)``.
        error: Mean squared error behind the activation function, on held-out rows.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor
    error: float


class _Layer:
    """A layer, rows of it to learn from and rows that are held out.

    Args:
        call: The layer's call.
        activate: The activation function behind it, of values ``(n, C_out)``.
        learned: Quantized inputs and float outputs.
        held: Those of held-out images.
    """

    def __init__(
        self,
        call: LayerCall,
        activate: Callable[[Tensor], Tensor],
        learned: LayerRows,
        held: LayerRows,
    ) -> None:
        self.call, self.activate, self.learned, self.held = call, activate, learned, held
        self.folded, self.spec = call.folded(), call.layer.weight_quantizer.spec
        groups = call.layer.num_groups
        self.weight = self.folded.weight.reshape(groups, -1, learned.inputs.shape[2])
        stride = max(learned.inputs.shape[1] // _JUDGED_ROWS, 1)
        self.judged = LayerRows(*(v[:, ::stride] for v in learned))
        self.wanted = activate(_by_channel(self.judged.outputs)).mean(0)
        self.wanted_held = activate(_by_channel(held.outputs))

    def judge(self, weight: Tensor, scale: Tensor) -> _Candidate:
        """Find the bias and the error of a weight, shape ``(G, O, d)``."""
        bias = torch.zeros_like(scale) if self.folded.bias is None else self.folded.bias
        if correctable_bias(self.call) is not None:
            made = _by_channel(self.judged.inputs @ weight.mT)
            bias = (_by_channel(self.judged.outputs) - made).mean(0)
            bias = fit_bias(self.activate, made, self.wanted, bias)
            bias = within_integers(self.call, bias, scale)
        found = self.activate(_by_channel(self.held.inputs @ weight.mT) + bias)
        return _Candidate(weight, scale, bias, float((found - self.wanted_held).square().mean()))

    def grams(self) -> tuple[Tensor, Tensor]:
        """Return ``E[x x^T]`` and ``E[x y^T]`` around the means, for each group."""
        x, y = (v - v.mean(1, keepdim=True) for v in self.learned)
        return x.mT @ x / x.shape[1], x.mT @ y / x.shape[1]

    def scales(self) -> list[Tensor]:
        """Scales to try, shape ``(C_out,)`` each: finer ones leave the largest weights outside."""
        call, own = self.call, self.folded.scale
        if self.spec.granularity != "per_tensor" or self.spec.fixed_range is not None:
            return [own]
        rows = call.layer.rows(self.folded.weight)
        least = min_weight_scale(
            rows, None, self.folded.bias, call.layer.bias_spec, call.input_quantizer
        )
        covered = range_of(own, self.spec)
        finer = (weight_scale(covered * part, self.spec, least) for part in _PARTS_OF_TENSOR)
        return [own, *(scale for scale in finer if bool((scale < own).any()))]

    def candidates(self) -> Iterator[_Candidate]:
        """Nearest grid points and fitted ones, on each grid."""
        gram, cross = self.grams()
        fits = [(self.weight, damped_gram(gram, _STRENGTHS[0]))]
        fits += [ridge(gram, cross, self.weight, strength) for strength in _STRENGTHS]
        own = self.folded.scale
        best = min(fits, key=lambda fit: self.judge(fit[0], own).error)
        limits = self.spec.quant_min, self.spec.quant_max
        for scale in self.scales():
            units, rounded = scale.reshape(*self.weight.shape[:2]), [best]
            if scale is own:
                nearest = (self.weight / units[..., None]).round().clamp(*limits)
                yield self.judge(nearest * units[..., None], scale)
                rounded = fits[:1] if best is fits[0] else [fits[0], best]
            for weight, damped in rounded:
                integers = round_with_feedback(weight, units, *limits, damped)
                yield self.judge(integers * units[..., None], scale)


def _by_channel(rows: Tensor) -> Tensor:
    """Outputs of the groups, shape ``(G, n, O)``, as ``(n, C_out)``."""
    return rows.transpose(0, 1).flatten(1)


def _fit(
    model: GraphModel, call: LayerCall, run: NodeRun, target: NodeRun, num_learned: int
) -> None:
    """Give a layer the best of its candidates; one without a weight of its own the best bias."""
    activate = activation_behind(model, call)
    if call.layer.is_transposed or not call.has_own_weight:
        half = added_half_scale(call.output_quantizer)
        made = some_outputs(call, [y - half for y in run.outputs[:num_learned]])
        wanted = activate(some_outputs(call, target.outputs[:num_learned])).mean(0)
        shift = fit_bias(activate, made, wanted, torch.zeros_like(made[0]))
        shift_bias(call, shift, call.folded().scale)
        return
    inputs, count = run.values_of(call.input_node), _num_rows(call)
    learned, held = (
        rows_of_batches(call, inputs[part], target.outputs[part], rows)
        for part, rows in (
            (slice(num_learned), count),
            (slice(num_learned, None), min(count, _JUDGED_ROWS)),
        )
    )
    best = min(_Layer(call, activate, learned, held).candidates(), key=lambda c: c.error)
    base = call.folded().bias
    store_weight(call, best.weight.reshape(call.weight.shape), best.scale)
    shift_bias(call, best.bias if base is None else best.bias - base, best.scale)


def _num_rows(call: LayerCall) -> int:
    """Rows of each group to sum over: by how many inputs an output has, as far as they cost."""
    groups, inputs = call.layer.num_groups, call.weight[0].numel()
    wanted = max(_ROWS, 4 * inputs)
    return min(wanted, _ELEMENTS // (groups * inputs), _PRODUCTS // (groups * inputs**2))
