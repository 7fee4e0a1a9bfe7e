"""Sequences of post-training methods: a tuned one by one word, or any methods by their names."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from edgeailite.quantization.arithmetic.sqnr import flat_outputs, sqnr
from edgeailite.quantization.methods.gains import MethodGain
from edgeailite.quantization.methods.registry import METHODS, Batches
from edgeailite.quantization.modules.layer_calls import float_arithmetic

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel

# As measured by benchmarks/post_training.py: narrower weights help only where rounding is learned,
# and biases only where it is not.
QUALITIES: dict[str, tuple[str, ...]] = {
    "fast": ("equalization", "activation_ranges", "biases"),
    "best": ("equalization", "activation_ranges", "weight_ranges", "learned_rounding"),
}


def methods_named(quality: str | Sequence[str]) -> tuple[str, ...]:
    """Return the methods that a quality stands for, or these methods themselves.

    Args:
        quality: A key of :data:`QUALITIES`, alone in a sequence too, or names of registered
            methods in the order they are to run in.

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
        batches: Inputs of the model, a tuple for each batch: a few dozen images, none of which it
            will be evaluated on.
        quality: See :func:`methods_named`.

    Returns:
        The effect of each method.

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
