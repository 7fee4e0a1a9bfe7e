"""Memory plan: the one liveness analysis, for the report's RAM and for the arena of the C files."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

Value = TypeVar("Value", bound=Hashable)


class Lifetime(NamedTuple):
    """Operations during which a value is held, both inclusive.

    Attributes:
        first: Index of the operation that makes it.
        last: Index of the operation that reads it last.
    """

    first: int
    last: int


def lifetimes(
    operations: Iterable[tuple[Iterable[Value], Iterable[Value]]],
) -> dict[Value, Lifetime]:
    """Lifetime of every value that operations make.

    Args:
        operations: In their order, the values that each reads and those that it writes. A value
            that is written several times lives from the first time on.
    """
    found: dict[Value, Lifetime] = {}
    for index, (reads, writes) in enumerate(operations):
        for value in writes:
            found[value] = Lifetime(found[value].first if value in found else index, index)
        for value in reads:
            if value in found:
                found[value] = found[value]._replace(last=max(found[value].last, index))
    return found


def peak(live: Mapping[Value, Lifetime], sizes: Mapping[Value, int], count: int) -> tuple[int, int]:
    """Most bytes that are held together, and the index of the first operation at which they are.

    Args:
        live: Lifetimes of the values.
        sizes: Bytes of each.
        count: Number of operations.
    """
    held = [
        sum(sizes[value] for value, life in live.items() if life.first <= index <= life.last)
        for index in range(count)
    ]
    most = max(held)
    return most, held.index(most)


def place(
    live: Mapping[Value, Lifetime], sizes: Mapping[Value, int], order: Sequence[Value]
) -> dict[Value, int]:
    """First byte of each value in one arena, so that no two that live together overlap.

    The largest first, each at the lowest place that is free while it lives.

    Args:
        live: Lifetimes of the values.
        sizes: Bytes of each.
        order: The values; of equally large ones the first is placed first.
    """
    placed: dict[Value, int] = {}
    for value in sorted(order, key=lambda v: -sizes[v]):
        first, last = live[value]
        others = [v for v in placed if live[v].first <= last and first <= live[v].last]
        start = 0
        for other in sorted(others, key=placed.__getitem__):
            if start + sizes[value] <= placed[other]:
                break
            start = max(start, placed[other] + sizes[other])
        placed[value] = start
    return placed
