"""Operations with tables, and pointwise functions of 8-bit integers, which are nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor

from edgeailite.quantization.graph.real_tensors import with_real_tensors
from edgeailite.quantization.integer.grid import (
    Constants,
    Dequantize,
    Grid,
    IntegerOperator,
    Quantize,
    Requantize,
)

_Made = TypeVar("_Made")


def look_up(table: Tensor, index: Tensor) -> Tensor:
    """``table[index]``, for places in int64; one Gather in a file."""
    if not torch.compiler.is_exporting():
        return table[index]
    return torch.onnx.ops.symbolic(
        "Gather", (table, index), dtype=table.dtype, shape=index.shape, version=13
    )


class TabledOperator(IntegerOperator):
    """An operation with tables, each made once; a copy of the model makes its own."""

    def __init__(self) -> None:
        super().__init__()
        self._tables: dict[tuple[Any, ...], Any] = {}

    def made_once(self, key: tuple[Any, ...], make: Callable[[], _Made]) -> _Made:
        """Table, or tables, of a key, of real values also while the model is exported."""
        if key not in self._tables:
            with with_real_tensors(self):
                self._tables[key] = make()
        return cast("_Made", self._tables[key])

    def __getstate__(self) -> dict[str, Any]:
        """Take all but the tables."""
        return {**self.__dict__, "_tables": {}}


class IntegerTable(TabledOperator):
    """The result of a function for each integer of a grid: ``round(f((q - z) s) / s_y) + z_y``.

    A file holds the table, or ``DequantizeLinear, f, QuantizeLinear`` where ONNX Runtime gives the
    table's integers for all inputs, see :mod:`~edgeailite.quantization.export.functions`.

    Args:
        function: Pointwise, of real values, and perhaps of numbers that sizes give.
        source: Grid of the input, 8 bits at most.
        output: Grid of the result.
        is_written: Files hold the table always.

    Attributes:
        numbers: Those that the last call was given.
    """

    numbers: tuple[Any, ...] = ()
    constant_names: ClassVar[dict[str, str]] = {"Gather": "table"}

    def __init__(
        self,
        function: Callable[..., Tensor],
        source: Grid,
        output: Grid,
        is_written: bool = False,
    ) -> None:
        super().__init__()
        self.function, self.is_written = function, is_written
        self.input, self.output = Dequantize(source), Requantize(output)

    def table(self, *numbers: Any) -> Tensor:
        """Results for the :attr:`~Grid.integers` of the source, float32."""
        held, device = self.input.grid.integers, self.input.scale.device

        def make() -> Tensor:
            integers = torch.arange(held.start, held.stop, dtype=torch.float32, device=device)
            real = self.function(self.input.real(integers), *numbers)
            return Quantize(self.output.grid).integers(real.nan_to_num(nan=0.0))

        return self.made_once((*numbers, device), make)

    @property
    def output_grid(self) -> Grid:
        """Grid of the result."""
        return self.output.grid

    def forward(self, x: Tensor, *numbers: Any) -> Tensor:
        """Integers in and out; any shape."""
        self.numbers = numbers
        has_float_form = self.input.exports_onnx_form and self.output.exports_onnx_form
        if has_float_form and not self.is_written:
            return self.output(self.function(self.input(x), *numbers))
        table, index = self.table(*numbers), x.to(torch.int64) - self.input.grid.integers.start
        if torch.compiler.is_exporting():
            table = self.output._stored(table)
        return look_up(table, index)

    def constants(self, input_shape: torch.Size | None) -> Constants:
        """The table, in whole bytes for each result."""
        result = -(-self.output.grid.bit_width // 8)
        return Constants(len(self.input.grid.integers) * result)
