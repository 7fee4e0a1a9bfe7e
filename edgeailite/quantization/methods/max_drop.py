"""Calibrate as far as it takes: from the plain way to more bits, until the result holds."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from edgeailite.quantization.methods.images import divisible, split
from edgeailite.quantization.methods.mixed_precision.bit_widths import apply_bit_widths
from edgeailite.quantization.methods.mixed_precision.result import MixedPrecision
from edgeailite.quantization.methods.mixed_precision.sensitivity import layer_sensitivity
from edgeailite.quantization.methods.registry import METHODS, Batches
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.modules.layer import QuantLayer
from edgeailite.quantization.modules.layer_calls import (
    copied_state,
    float_arithmetic,
    layer_calls,
    quantized_modules,
)

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel

# Gives a number of a model, higher is better.
Metric = Callable[[nn.Module], float]
# Calibrates on batches with a quality; None: plainly.
Calibrate = Callable[[Batches, str | None], object]

MORE_BITS = 16
# Parts of the layers, those first that change the output most, that get more bits.
_PARTS = (0.125, 0.25, 0.5, 1.0)
_NUM_NAMED = 5


@dataclass
class DropResult:
    """Result of a calibration that goes as far as it takes.

    Attributes:
        max_drop: What was asked for, in the metric's units; percent for agreement.
        drops: What each step left, in their order: ``plain``, ``fast``, ``best``, and those with
            16 bits for some layers.
        metric: What was measured.
        layers: Paths of the layers with 16 bits, weight and output.
        sensitive: Layers that change the output most, the most sensitive one first.
    """

    max_drop: float
    metric: str
    drops: dict[str, float] = field(default_factory=dict)
    layers: tuple[str, ...] = ()
    sensitive: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """True if a step's drop is not above the limit: the last one's."""
        return bool(self.drops) and self.drop <= self.max_drop

    @property
    def step(self) -> str:
        """Name of the step with the smallest drop, in which the model is."""
        return min(self.drops, key=lambda step: self.drops[step])

    @property
    def drop(self) -> float:
        """Drop of that step."""
        return self.drops[self.step]

    def __str__(self) -> str:
        lines = [f"{name:24} {drop:8.2f}" for name, drop in self.drops.items()]
        lines = [f"{'calibration':24} {'drop':>8}  ({self.metric})", *lines]
        if self.holds:
            lines.append(f"'{self.step}' suffices: {self.drop:.2f}, at most {self.max_drop:g}")
        else:
            named = ", ".join(f"'{path}'" for path in self.sensitive[:_NUM_NAMED])
            lines.append(
                f"not reached: {self.drop:.2f}, at most {self.max_drop:g}. The output depends most "
                f"on {named}. Calibrate with more images, leave these layers in float, or train "
                "the network quantized."
            )
        return "\n".join(lines)


def agreement(reference: Sequence[Tensor], model: nn.Module, batches: Batches) -> float:
    """Percent of the decisions (of images, or of pixels) that are those of the reference.

    Args:
        reference: The float model's decisions for each batch, see :func:`decisions`.
        model: Called with each batch.
        batches: Inputs of the model, a tuple for each batch.
    """
    found = zip(reference, decisions(model, batches), strict=True)
    equal = [(a == b).flatten().float() for a, b in found]
    return 100 * float(torch.cat(equal).mean())


@torch.no_grad()
def decisions(model: nn.Module, batches: Batches) -> list[Tensor]:
    """Class of the largest output along axis 1, of the model's first output, for each batch.

    Raises:
        ValueError: The output has no classes along axis 1.
    """
    outputs = [next(v for v in tree_leaves(model(*b)) if isinstance(v, Tensor)) for b in batches]
    for output in outputs[:1]:
        if output.dim() < 2 or output.shape[1] < 2:
            raise ValueError(
                f"max_drop compares the classes along axis 1 of the first output, which has shape "
                f"{tuple(output.shape)}: give metric=, a function of a model that is higher the "
                "better it is."
            )
    return [output.argmax(1) for output in outputs]


def calibrate_until(
    model: GraphModel,
    evaluated: nn.Module,
    batches: Batches,
    calibrate: Calibrate,
    max_drop: float,
    metric: Metric | None = None,
    may_widen: bool = True,
) -> DropResult:
    """Calibrate plainly, ``fast``, ``best``, and with more bits, until the drop is small enough.

    Where no step's is, the model ends in the step with the smallest.

    Args:
        model: Prepared model.
        evaluated: What is deployed: the wrapper of `model`.
        batches: Inputs of the model, a tuple for each batch.
        calibrate: Calibrates `model`, from the state that it is in, on batches with a quality.
        max_drop: Largest drop of the metric, in its units.
        metric: Gives a model's number, higher is better. None: the percentage of classes on held
            out images that are the float model's.
        may_widen: Layers may get 16 bits.

    Raises:
        ValueError: `max_drop` is negative, or without a `metric` the output has no classes.
    """
    if not max_drop >= 0:
        raise ValueError(f"max_drop is {max_drop}; it is 0 or above.")
    batches = divisible(model, batches) if batches else batches
    learned, held = split(batches)
    measure, whole, name = _measure(model, held, metric)
    result, steps = DropResult(max_drop, name), _Steps(model)

    def attempt(step: str, quality: str | None, layers: tuple[str, ...] = ()) -> bool:
        steps.begin(layers)
        calibrate(learned if quality is None else batches, quality)
        result.drops[step], result.layers = whole - measure(evaluated), layers
        steps.keep(result.drop)
        return result.holds

    if attempt("plain", None) or attempt("fast", "fast") or attempt("best", "best"):
        return result
    result.sensitive = _by_sensitivity(steps.first(), learned, held)
    for part in _PARTS if may_widen else ():
        chosen = result.sensitive[: max(round(part * len(result.sensitive)), 1)]
        plural = "s" if len(chosen) > 1 else ""
        if attempt(f"{MORE_BITS} bits in {len(chosen)} layer{plural}", "fast", chosen):
            return result
    result.layers = steps.end_in_best()
    return result


def _measure(model: GraphModel, held: Batches, metric: Metric | None) -> tuple[Metric, float, str]:
    """Return what gives a model's number, that of the model in float, and what it is."""
    with float_arithmetic(model):
        if metric is not None:
            return metric, float(metric(model)), getattr(metric, "__name__", "metric")
        wanted = decisions(model, held)
    number = sum(classes.numel() for classes in wanted)
    percent = partial(agreement, wanted, batches=held)
    return percent, 100.0, f"of {number} decisions, in percent"


class _Steps:
    """States of a model: the first, and the one with the smallest drop.

    Args:
        model: Prepared model, in its first state.
    """

    def __init__(self, model: GraphModel) -> None:
        self._model, self._first = model, copy.deepcopy(model)
        self._layers: tuple[str, ...] = ()
        self._best: tuple[float, tuple[str, ...], dict[str, Any]] | None = None

    def first(self) -> GraphModel:
        """Return a model in the first state."""
        return copy.deepcopy(self._first)

    def begin(self, layers: tuple[str, ...]) -> None:
        """Let the model begin anew, these layers and their outputs with more bits."""
        pairs = zip(*map(quantized_modules, (self._model, self._first)), strict=True)
        for own, first in pairs:  # a state dict brings bits, and takes none back
            if isinstance(own, FakeQuantize) and isinstance(first, FakeQuantize):
                own.spec, own.has_own_bits = first.spec, first.has_own_bits
            elif isinstance(own, QuantLayer) and isinstance(first, QuantLayer):
                own.weight_quantizer = copy.copy(first.weight_quantizer)
                own.bias_spec = first.bias_spec
        self._model.load_state_dict(self._first.state_dict())
        if layers:
            bits = dict.fromkeys(layers, MORE_BITS)
            apply_bit_widths(self._model, MixedPrecision(bits, activations=True))
        self._layers = layers

    def keep(self, drop: float) -> None:
        """Remember the model if its drop is the smallest so far."""
        if self._best is None or drop < self._best[0] or math.isnan(self._best[0]):
            self._best = drop, self._layers, copied_state(self._model)

    def end_in_best(self) -> tuple[str, ...]:
        """Let the model end in the state with the smallest drop; return its layers of more bits."""
        assert self._best is not None
        _, layers, state = self._best
        self.begin(layers)
        self._model.load_state_dict(state)
        return layers


def _by_sensitivity(model: GraphModel, batches: Batches, held: Batches) -> tuple[str, ...]:
    """Paths of the layers by what their own bits do to the output, the worst first."""
    METHODS["activation_ranges"](model, batches)
    bits = {c.path: c.layer.weight_quantizer.spec.bit_width for c in layer_calls(model)}
    measured = layer_sensitivity(model, held, sorted(set(bits.values())), activations=True)
    measured.sort(key=lambda layer: layer.errors[bits[layer.path]], reverse=True)
    return tuple(layer.path for layer in measured)
