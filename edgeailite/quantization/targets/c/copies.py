"""Copies of values to other places: loops where places follow a rule, else a table of places."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgeailite.quantization.targets.c.program import (
    Argument,
    Array,
    At,
    Buffer,
    Step,
    Struct,
    bytes_of,
)

if TYPE_CHECKING:
    from edgeailite.quantization.integer.grid import Grid


def nested(*places: Tensor) -> list[tuple[int, ...]] | None:
    """Nested loops that give lists of places, or None if there are none.

    Args:
        *places: Equally long, int64.

    Returns:
        Of each loop, from the outermost on, the number of rounds and the distances in each list.
    """
    table, loops = torch.stack(places), []
    while table.shape[1] > 1:
        length = _run(table)
        if length == 1:
            return None
        loops.append((length, *(table[:, 1] - table[:, 0]).tolist()))
        table = table.reshape(len(places), -1, length)[:, :, 0]
    return loops[::-1] or [(1, *[1] * len(places))]


def _run(table: Tensor) -> int:
    """Longest length, which divides the number of places, of runs that are alike everywhere."""
    count = table.shape[1]
    steps = table.diff(dim=1)
    breaks = (steps != steps[:, :1]).any(0).nonzero()
    longest = int(breaks[0]) + 1 if len(breaks) else count
    for length in range(longest, 1, -1):
        if count % length == 0:
            runs = table.reshape(len(table), -1, length).diff(dim=2)
            if bool((runs == steps[:, :1, None]).all()):
                return length
    return 1


def loops_of(nest: list[tuple[int, ...]]) -> list[Struct]:
    """Loops as constants."""
    return [Struct("edgeailite_loop", count=n, **{"from": a, "to": b}) for n, a, b in nest]


def copied(
    path: str, source: Buffer, places: Tensor, grid: Grid, fill: int
) -> tuple[list[Step], Buffer]:
    """Copy values of a buffer to a new one.

    Args:
        path: Of the module that needs it.
        source: Holds them.
        places: In the source, for each place of the new buffer; -1: in none.
        grid: Of the values.
        fill: Stored integer at the places that are in none.
    """
    made = Buffer((len(places),), grid, (0,))
    size, steps = bytes_of(grid), []
    inside = (places >= 0).nonzero()[:, 0]
    nest = nested(places[inside], inside) if len(inside) else None
    if nest is None or len(nest) > 6:
        args: list[Argument] = [Array("int32_t", places), len(places), fill, size, source, made]
        return [Step(path, "edgeailite_pick", args, [source], [made])], made
    if len(inside) < len(places):
        filled = Step(path, "edgeailite_fill", [fill, len(places), size, made], [], [made])
        steps.append(filled)
    start = int(places[inside[0]])
    steps.append(
        Step(
            path,
            "edgeailite_move",
            [loops_of(nest), len(nest), size, At(source, start), At(made, int(inside[0]))],
            [source],
            [made],
        )
    )
    return steps, made
