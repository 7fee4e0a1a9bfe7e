"""Post-training methods in a tuned sequence, by one word."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from edgeailite.quantization.bias_correction import correct_biases
from edgeailite.quantization.equalize import equalize
from edgeailite.quantization.graph import GraphModel
from edgeailite.quantization.learned_rounding import learn_rounding
from edgeailite.quantization.range_search import search_activation_ranges, search_weight_ranges
from edgeailite.quantization.units import float_arithmetic

Batches = Sequence[tuple[Any, ...]]
Method = Callable[[GraphModel, Batches], list[str]]

# "best" learns rounding for at most so long.
SECONDS = 480.0
ITERATIONS = 1000

_BEFORE: dict[str, Method] = {
    "equalization": equalize,
    "activation ranges": search_activation_ranges,
}
# As measured by benchmarks/post_training.py: narrower weights help only where rounding is learned,
# and biases only where it is not.
QUALITIES: dict[str, dict[str, Method]] = {
    "fast": {**_BEFORE, "biases": correct_biases},
    "best": {
        **_BEFORE,
        "weight ranges": search_weight_ranges,
        "learned rounding": partial(learn_rounding, iterations=ITERATIONS, seconds=SECONDS),
    },
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


def post_training(model: GraphModel, batches: Batches, quality: str) -> list[MethodGain]:
    """Run the methods of a quality, one after the other.

    Args:
        model: Prepared model; it ends in evaluation mode, its ranges fixed.
        batches: Inputs of the model, a tuple for each batch: a few dozen images, none of those it
            will be judged by.
        quality: A key of :data:`QUALITIES`.

    Returns:
        What each method did.

    Raises:
        ValueError: There is no such quality, or no batch.
    """
    if quality not in QUALITIES:
        raise ValueError(f"quality is {quality!r}; allowed: {', '.join(map(repr, QUALITIES))}.")
    if not batches:
        raise ValueError("There was no batch to calibrate with: the data is empty.")
    model.eval()
    with torch.no_grad(), float_arithmetic(model):
        references = _outputs(model, batches)
    gains = []
    for name, method in QUALITIES[quality].items():
        started = time.perf_counter()
        changed = method(model, batches)
        seconds = time.perf_counter() - started
        gains.append(MethodGain(name, len(changed), _sqnr(model, batches, references), seconds))
    return gains


def render_gains(gains: Sequence[MethodGain]) -> str:
    """A table of what each method did."""
    lines = [f"{'method':20} {'changed':>8} {'SQNR dB':>8} {'seconds':>8}"]
    lines += [f"{g.method:20} {g.num_changed:8} {g.sqnr:8.2f} {g.seconds:8.1f}" for g in gains]
    return "\n".join(lines)


@torch.no_grad()
def _outputs(model: GraphModel, batches: Batches) -> list[Tensor]:
    found = []
    for batch in batches:
        leaves = [v for v in tree_leaves(model(*batch)) if isinstance(v, Tensor)]
        found.append(torch.cat([leaf.flatten().double() for leaf in leaves]))
    return found


def _sqnr(model: GraphModel, batches: Batches, references: list[Tensor]) -> float:
    """``10 log10(sum y^2 / sum (y - y_q)^2)``."""
    outputs = _outputs(model, batches)
    signal = sum(float(y.square().sum()) for y in references)
    noise = sum(float((y - q).square().sum()) for y, q in zip(references, outputs, strict=True))
    return float(10 * torch.log10(torch.tensor(signal / max(noise, 1e-300))))
