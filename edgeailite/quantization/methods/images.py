"""Calibration images: those to learn from, and those held out to judge by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from edgeailite.quantization.modules.layer_calls import float_arithmetic

if TYPE_CHECKING:
    from edgeailite.quantization.methods.registry import Batches

# One image of so many is held out.
HELD_OUT_EVERY = 4


class WholeBatch(tuple[Any, ...]):
    """A batch that a model takes as one, or not at all."""


@torch.no_grad()
def divisible(model: nn.Module, batches: Batches) -> Batches:
    """Return the batches as they are, or as whole ones if the model does not take single images.

    It does if the first two images give alone what they give together. A model that says how many
    images a batch has does not, nor does one that mixes them.

    Args:
        model: In evaluation mode.
        batches: Inputs of the model, a tuple for each batch.
    """
    if num_images(batches[0]) == 1:
        return batches
    try:
        with float_arithmetic(model):
            both, *alone = (
                tree_leaves(model(*_chosen(batches[:1], [(0, row) for row in rows])[0]))
                for rows in ((0, 1), (0,), (1,))
            )
            joined = [torch.cat(parts) for parts in zip(*alone, strict=True)]
            divides = all(map(_are_close, joined, both))
    except Exception:  # whatever a model raises for a batch of another size
        divides = False
    return batches if divides else [WholeBatch(batch) for batch in batches]


def _are_close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    if not one.is_floating_point():
        return bool((one == other).float().mean() > 0.99)
    return bool((one - other).abs().max() <= 1e-3 * other.abs().max().clamp_min(1e-6))


def num_images(batch: tuple[Any, ...]) -> int:
    """Images of a batch: the length of its tensors; 1 where they differ, and of a whole one."""
    if isinstance(batch, WholeBatch):
        return 1
    lengths = {len(leaf) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()}
    return lengths.pop() if len(lengths) == 1 else 1


def split(batches: Batches) -> tuple[Batches, Batches]:
    """Divide images into those to learn from and those held out, every fourth.

    Args:
        batches: Inputs of the model, a tuple for each batch.

    Returns:
        Both as batches; fewer than two images are in both.
    """
    places = [(b, i) for b, batch in enumerate(batches) for i in range(num_images(batch))]
    held = set(places[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY] or places[-1:])
    learned = [place for place in places if place not in held] or places
    return _chosen(batches, learned), _chosen(batches, sorted(held))


def spread(batches: Batches, count: int) -> Batches:
    """Take at most `count` images, evenly spread over all."""
    places = [(b, i) for b, batch in enumerate(batches) for i in range(num_images(batch))]
    if len(places) <= count:
        return batches
    return _chosen(batches, [places[i * len(places) // count] for i in range(count)])


def _chosen(batches: Batches, places: list[tuple[int, int]]) -> Batches:
    found = []
    for number, batch in enumerate(batches):
        rows = [row for b, row in places if b == number]
        if len(rows) == num_images(batch):
            found.append(batch)
        elif rows:
            found.append(tree_map(lambda v, rows=rows: _rows(v, rows), batch))
    return found


def _rows(value: Any, rows: list[int]) -> Any:
    return value[rows] if isinstance(value, Tensor) and value.dim() else value
