"""Instructions of the C runner, and their operands in one arena of bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx

from edgeailite.quantization.integer.memory_plan import lifetimes, place

if TYPE_CHECKING:
    from edgeailite.quantization.integer.grid import Grid


@dataclass(eq=False)
class Buffer:
    """A value in the arena.

    Attributes:
        shape: Without the batch.
        grid: Its integers.
        place: Byte in the arena where it starts.
    """

    shape: tuple[int, ...]
    grid: Grid
    place: int = -1

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape)

    @property
    def is_signed(self) -> bool:
        """True if its bytes are signed."""
        return self.grid.quant_min < 0


@dataclass
class Instruction:
    """One call of the runner; fields as in ``edgeailite_runner.h``.

    Attributes:
        name: Path of the module it comes from.
        node: Whose value its result is.
        operands: What it reads.
        result: What it writes, `result_offset` bytes behind its start.
        holds: Number of instructions behind this one during which its operands keep their place.
        weight: Of a layer; of TABLE the results.
    """

    opcode: str
    name: str
    node: fx.Node
    operands: list[Buffer]
    result: Buffer
    result_offset: int = 0
    holds: int = 0
    shape_in: tuple[int, ...] = (1, 1, 1)
    shape_out: tuple[int, ...] = (1, 1, 1)
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    weight_bits: int = 8
    weight: Tensor | None = None
    strides: tuple[int, int, int] = (0, 0, 0)
    offsets: list[float] = field(default_factory=list)
    multipliers: list[int] = field(default_factory=list)
    shifts: list[int] = field(default_factory=list)
    factors: list[float] = field(default_factory=list)


@dataclass
class Program:
    """Instructions in order, and the size of the arena that they work in."""

    instructions: list[Instruction]
    arena: int


def plan_arena(instructions: list[Instruction], results: list[Buffer]) -> int:
    """Give each buffer its place; returns the size of the arena.

    Args:
        instructions: In order.
        results: Read when all instructions are done.
    """
    reads = [list(i.operands) for i in instructions] + [list(results)]
    for index, instruction in enumerate(instructions):
        for later in reads[index + 1 : index + 1 + instruction.holds]:
            later += instruction.operands
    writes = [[i.result] for i in instructions] + [[]]
    live = lifetimes(zip(reads, writes, strict=True))
    sizes = {buffer: buffer.size for buffer in live}
    for buffer, start in place(live, sizes, list(live)).items():
        buffer.place = start
    return max((b.place + b.size for b in live), default=0)


def three(shape: Sequence[int]) -> tuple[int, int, int]:
    """A shape without batch as channels, height, width; further axes count as width."""
    channels, height, *width = (*shape, 1, 1)
    return channels, height, math.prod(width)


def sides(value: Any, axes: int, fill: int = 1) -> tuple[int, int]:
    """Height and width of an argument that is one number for all axes, or one for each."""
    return pair(value if isinstance(value, tuple | list) else [value] * axes, fill)


def pair(values: Sequence[int], fill: int = 1) -> tuple[int, int]:
    """Height and width; a time series has width 1 (padding 0)."""
    return int(values[0]), int(values[1]) if len(values) > 1 else fill
