"""Post-training methods in a sequence: a tuned one by one word, or any by their names."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from edgeailite.quantization.arithmetic.sqnr import flat_outputs, sqnr
from edgeailite.quantization.graph.model import GraphModel
from edgeailite.quantization.methods.bias_absorption import absorb_biases
from edgeailite.quantization.methods.bias_correction import (
    correct_biases,
    correct_biases_analytically,
)
from edgeailite.quantization.methods.equalization import equalize
from edgeailite.quantization.methods.learned_rounding import learn_rounding
from edgeailite.quantization.methods.range_search import (
    search_activation_ranges,
    search_weight_ranges,
)
from edgeailite.quantization.modules.layer_calls import float_arithmetic

Batches = Sequence[tuple[Any, ...]]
Method = Callable[[GraphModel, Batches], list[str]]

# "best" learns rounding for at most so long.
SECONDS = 480.0
ITERATIONS = 2000


def _correct_analytically(model: GraphModel, _batches: Batches) -> list[str]:
    return correct_biases_analytically(model)


METHODS: dict[str, Method] = {
    "bias_absorption": absorb_biases,
    "equalization": equalize,
    "activation_ranges": search_activation_ranges,
    "weight_ranges": search_weight_ranges,
    "analytic_biases": _correct_analytically,
    "biases": correct_biases,
    "learned_rounding": partial(learn_rounding, iterations=ITERATIONS, seconds=SECONDS),
    "block_rounding": partial(learn_rounding, blocks=True, iterations=ITERATIONS, seconds=SECONDS),
}
# As measured by benchmarks/post_training.py: narrower weights help only where rounding is learned,
# and biases only where it is not.
QUALITIES: dict[str, tuple[str, ...]] = {
    "fast": ("equalization", "activation_ranges", "biases"),
    "best": ("equalization", "activation_ranges", "weight_ranges", "learned_rounding"),
}


@dataclass(frozen=True)
class MethodGain:
    """What one method did.

    Attributes:
        method: Its name.
        num_changed: Quantizers or layers that it changed.
        sqnr: Of the network's output against the float model behind it, in dB, on the data it
            learned from.
        seconds: How long it took.
    """

    method: str
    num_changed: int
    sqnr: float
    seconds: float


def methods_named(quality: str | Sequence[str]) -> tuple[str, ...]:
    """The methods that a quality stands for, or these methods themselves.

    Args:
        quality: A key of :data:`QUALITIES`, alone in a sequence too, or keys of :data:`METHODS` in
            the order they are to run in.

    Raises:
        ValueError: There is no such quality or method, or activations would be left without ranges.
    """
    names = (quality,) if isinstance(quality, str) else tuple(quality)
    if len(names) == 1 and names[0] in QUALITIES:
        return QUALITIES[names[0]]
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        raise ValueError(
            f"quality is {quality!r}; allowed: {', '.join(map(repr, QUALITIES))}, or methods: "
            f"{', '.join(map(repr, METHODS))}."
        )
    if "activation_ranges" not in names:
        raise ValueError(
            f"quality is {quality!r}, without 'activation_ranges': activations would keep the "
            "placeholders that they begin with. Add it."
        )
    return names


def post_training(
    model: GraphModel, batches: Batches, quality: str | Sequence[str]
) -> list[MethodGain]:
    """Run the methods of a quality, one after the other.

    Args:
        model: Prepared model; it ends in evaluation mode, its ranges fixed.
        batches: Inputs of the model, a tuple for each batch: a few dozen images, none of those it
            will be judged by.
        quality: See :func:`methods_named`.

    Returns:
        What each method did.

    Raises:
        ValueError: There is no such quality or method, or no batch.
    """
    names = methods_named(quality)
    if not batches:
        raise ValueError("There was no batch to calibrate with: the data is empty.")
    model.eval()
    with torch.no_grad(), float_arithmetic(model):
        reference = flat_outputs(model(*batch) for batch in batches)
    gains = []
    for name in names:
        started = time.perf_counter()
        changed = METHODS[name](model, batches)
        seconds = time.perf_counter() - started
        with torch.no_grad():
            outputs = flat_outputs(model(*batch) for batch in batches)
        gains.append(MethodGain(name, len(changed), sqnr(reference, outputs), seconds))
    return gains


def render_gains(gains: Sequence[MethodGain]) -> str:
    """A table of what each method did."""
    lines = [f"{'method':20} {'changed':>8} {'SQNR dB':>8} {'seconds':>8}"]
    lines += [f"{g.method:20} {g.num_changed:8} {g.sqnr:8.2f} {g.seconds:8.1f}" for g in gains]
    return "\n".join(lines)
