"""A network as calls of kernels on values in one arena: what the C files hold."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from edgeailite.quantization.integer.memory_plan import lifetimes, place

if TYPE_CHECKING:
    from edgeailite.quantization.integer.grid import Grid

Order = tuple[int, ...]
"""Axes of a value from the outermost to the innermost in memory."""


def offset_of(grid: Grid) -> int:
    """Integer that is stored as 0: unsigned grids are stored as signed bytes or words."""
    top = max(grid.integers)
    return 128 if 127 < top <= 255 else 32768 if top > 32767 else 0


def bytes_of(grid: Grid) -> int:
    """Bytes of a stored integer.

    Raises:
        ValueError: It has more than 16 bits.
    """
    if grid.bit_width > 16:
        raise ValueError(f"its grid has {grid.bit_width} bits; C holds up to 16")
    return 1 if grid.bit_width <= 8 else 2


def type_of(grid: Grid) -> str:
    """Type of a stored integer in C."""
    return f"int{8 * bytes_of(grid)}_t"


def stored(integers: Tensor, grid: Grid) -> Tensor:
    """Integers of a grid as they are stored, int64."""
    return integers.to(torch.int64) - offset_of(grid)


def require_identifier(name: str, *taken: str) -> None:
    """Raise a ValueError where names in C cannot begin with `name`, or files have it already."""
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise ValueError(f"name is {name!r}; it must be a C identifier: letters, digits and '_'.")
    if name in taken:
        raise ValueError(f"name is {name!r}, as a file beside it is called; give another name.")


def pack(weight: Tensor, bits: int) -> list[int]:
    """Integers as bytes, fields of two's complement, the first one in the lowest bits.

    Args:
        weight: Integers of `bits` bits, any shape; taken row by row.
        bits: 8, 4 or 2.
    """
    values = weight.reshape(-1).to(torch.int64) & ((1 << bits) - 1)
    per_byte = 8 // bits
    padded = torch.nn.functional.pad(values, (0, -len(values) % per_byte)).reshape(-1, per_byte)
    return (padded << (torch.arange(per_byte) * bits)).sum(1).tolist()


def channels_last(shape: Sequence[int]) -> Order:
    """Order of the axes of a value ``(C, ...)``."""
    return (*range(1, len(shape)), 0)


def two(value: Any, axes: int, fill: int) -> tuple[int, int]:
    """Height and width of an option that is one number for all axes, or one for each."""
    listed = list(value) if isinstance(value, tuple | list) else [value]
    numbers = [int(n) for n in (listed * axes if len(listed) == 1 else listed)]
    return (fill, numbers[0]) if axes == 1 else (numbers[0], numbers[1])


@dataclass(eq=False)
class Buffer:
    """Integers in the arena, or in flash.

    Attributes:
        shape: Without the batch.
        grid: Their grid; None: of an input that nothing has read yet.
        order: Of its axes in memory; None: of an input, not decided yet.
        values: Of a constant, in the order of memory; None: it lies in the arena.
        size: Bytes of what is no value: scratch memory.
        place: Byte in the arena where it starts.
    """

    shape: tuple[int, ...]
    grid: Grid | None
    order: Order | None
    values: Tensor | None = None
    size: int = 0
    place: int = -1

    @property
    def count(self) -> int:
        """Number of integers."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes that it takes, in whole words."""
        used = self.size if self.grid is None else self.count * bytes_of(self.grid)
        return -(-used // 4) * 4

    def places(self) -> np.ndarray[Any, Any]:
        """Place in memory of each value, by its number in PyTorch's order."""
        assert self.order is not None
        numbers = np.arange(self.count).reshape(self.shape).transpose(self.order).reshape(-1)
        found = np.empty_like(numbers)
        found[numbers] = np.arange(self.count)
        return found


class Array:
    """A table of constants.

    Args:
        type: Of its entries in C.
        values: Integers, any shape.
    """

    def __init__(self, type: str, values: Tensor | Sequence[int]) -> None:
        self.type = type
        held = values if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.int64)
        self.values = held.reshape(-1).to(torch.int64)


class Struct:
    """A structure of constants.

    Args:
        type: Its type in C; empty inside of another one.
        fields: Numbers, arrays, structures, or lists of structures, by name.
    """

    def __init__(self, type: str, **fields: Any) -> None:
        self.type, self.fields = type, fields


@dataclass(frozen=True)
class Port:
    """An input or output of the network.

    Attributes:
        buffer: Holds it.
        shape: Without the batch.
        order: Of its axes in memory.
        grid: Of its integers.
    """

    buffer: Buffer
    shape: tuple[int, ...]
    order: Order
    grid: Grid

    @property
    def count(self) -> int:
        """Number of integers."""
        return math.prod(self.shape)


class At(NamedTuple):
    """A place in a buffer: that of its value of this number in memory."""

    buffer: Buffer
    number: int


Argument = int | str | Buffer | At | Array | Struct | list[Struct]
"""Of a kernel; text is written as it is."""


@dataclass(eq=False)
class Step:
    """A call of a kernel.

    Attributes:
        name: Path of the module it comes from.
        kernel: Name of the function.
        args: Its arguments: numbers, buffers, constants.
        reads: Buffers that must hold their values.
        writes: Buffers that it writes, scratch memory among them.
    """

    name: str
    kernel: str
    args: list[Argument]
    reads: list[Buffer]
    writes: list[Buffer]


@dataclass
class Raw:
    """An input that is not quantized yet, perhaps moved.

    Attributes:
        buffer: Holds its integers later.
        shape: Without the batch.
        index: For each element its number in the buffer, in PyTorch's order, or -1 for zero; None:
            all of them in their order.
    """

    buffer: Buffer
    shape: tuple[int, ...]
    index: Tensor | None = field(default=None, kw_only=True)

    def numbers(self) -> Tensor:
        """`index`, written out, int64 in the shape of the value."""
        if self.index is not None:
            return self.index
        return torch.arange(math.prod(self.shape)).reshape(self.shape)


@dataclass
class Value(Raw):
    """A value of the graph: integers of a buffer, perhaps moved.

    Attributes:
        grid: Of the integers.
    """

    grid: Grid


@dataclass
class Program:
    """All steps in order, and the memory they work in.

    Attributes:
        steps: In order.
        inputs: Where the network reads.
        outputs: Where its results lie.
        arena: Bytes of the arena.
    """

    steps: list[Step] = field(default_factory=list)
    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    arena: int = 0

    def plan(self) -> None:
        """Give each buffer its place in the arena."""
        inputs, outputs = ([port.buffer for port in ports] for ports in (self.inputs, self.outputs))
        accesses = [([], inputs), *((s.reads, s.writes) for s in self.steps), (outputs, [])]
        live = lifetimes(accesses)
        sizes = {buffer: buffer.bytes for buffer in live}
        for buffer, start in place(live, sizes, list(live)).items():
            buffer.place = start
        self.arena = max((b.place + b.bytes for b in live), default=0)
