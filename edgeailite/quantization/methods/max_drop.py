"""Calibrate as far as it takes: from the plain way to more bits, until the result holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from edgeailite.quantization.methods.images import split
from edgeailite.quantization.methods.mixed_precision.bit_widths import apply_bit_widths
from edgeailite.quantization.methods.mixed_precision.result import MixedPrecision
from edgeailite.quantization.methods.mixed_precision.sensitivity import layer_sensitivity
from edgeailite.quantization.methods.registry import METHODS, Batches
from edgeailite.quantization.modules.layer_calls import float_arithmetic, layer_calls

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel

# Gives a number of a model, higher is better.
Metric = Callable[[nn.Module], float]
# Calibrates with a quality; None: plainly.
Calibrate = Callable[[str | None], object]

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
        """True if the last step's drop is not above the limit."""
        return bool(self.drops) and self.drop <= self.max_drop

    @property
    def step(self) -> str:
        """Name of the last step."""
        return list(self.drops)[-1]

    @property
    def drop(self) -> float:
        """Drop of the last step."""
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

    Args:
        model: Prepared model.
        evaluated: What is deployed: the wrapper of `model`.
        batches: Inputs of the model, a tuple for each batch.
        calibrate: Calibrates `model`, from the state that it is in, with a quality.
        max_drop: Largest drop of the metric, in its units.
        metric: Gives a model's number, higher is better. None: the percentage of classes on held
            out images that are the float model's.
        may_widen: Layers may get 16 bits.

    Raises:
        ValueError: `max_drop` is negative, or without a `metric` the output has no classes.
    """
    if max_drop < 0:
        raise ValueError(f"max_drop is {max_drop}; it is 0 or above.")
    begin = {k: v.clone() if isinstance(v, Tensor) else v for k, v in model.state_dict().items()}
    _, held = split(batches)
    with float_arithmetic(model):
        if metric is None:
            wanted = decisions(model, held)
            best, name = 100.0, f"of {sum(d.numel() for d in wanted)} decisions, in percent"
        else:
            best, name = float(metric(model)), getattr(metric, "__name__", "metric")
    result = DropResult(max_drop, name)

    def attempt(step: str, quality: str | None) -> bool:
        model.load_state_dict(begin)
        calibrate(quality)
        found = metric(evaluated) if metric else agreement(wanted, evaluated, held)
        result.drops[step] = best - float(found)
        return result.holds

    if attempt("plain", None) or attempt("fast", "fast") or attempt("best", "best"):
        return result
    model.load_state_dict(begin)
    result.sensitive = _by_sensitivity(model, batches, held)
    for part in _PARTS if may_widen else ():
        chosen = result.sensitive[: max(round(part * len(result.sensitive)), 1)]
        model.load_state_dict(begin)
        apply_bit_widths(model, MixedPrecision(dict.fromkeys(chosen, MORE_BITS), activations=True))
        result.layers = chosen
        plural = "s" if len(chosen) > 1 else ""
        if attempt(f"{MORE_BITS} bits in {len(chosen)} layer{plural}", "fast"):
            break
    return result


def _by_sensitivity(model: GraphModel, batches: Batches, held: Batches) -> tuple[str, ...]:
    """Paths of the layers by what their own bits do to the output, the worst first."""
    METHODS["activation_ranges"](model, batches)
    bits = {c.path: c.layer.weight_quantizer.spec.bit_width for c in layer_calls(model)}
    measured = layer_sensitivity(model, held, sorted(set(bits.values())), activations=True)
    measured.sort(key=lambda layer: layer.errors[bits[layer.path]], reverse=True)
    return tuple(layer.path for layer in measured)
