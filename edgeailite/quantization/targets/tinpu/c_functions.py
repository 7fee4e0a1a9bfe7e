"""Functions of values as instructions of the C runner: tables, products and softmax."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import fx

from edgeailite.quantization.targets.tinpu.c_instructions import three

if TYPE_CHECKING:
    from edgeailite.quantization.integer.table import IntegerTable
    from edgeailite.quantization.targets.tinpu.c_program import Reader
    from edgeailite.quantization.targets.tinpu.operators import (
        ExactSoftmax,
        OffsetScaleShiftProduct,
    )


def read_table(reader: Reader, node: fx.Node, module: IntegerTable) -> None:
    """A result for each integer of the operand, from the smallest one on."""
    shape = three(reader.shapes[node])
    reader.emit(
        "TABLE",
        node,
        module.output_grid,
        weight=module.table(*module.numbers),
        shape_in=shape,
        shape_out=shape,
        strides=(-module.input.grid.integers.start, 0, 0),
    )


def read_product(reader: Reader, node: fx.Node, module: OffsetScaleShiftProduct) -> None:
    """The operand of the result's shape first; the other one may have axes of size 1."""
    left, right = (node.args[0], node.args[-1])
    assert isinstance(left, fx.Node)
    assert isinstance(right, fx.Node)
    shape = reader.shapes[node]
    whole, other = sorted((left, right), key=lambda n: reader.shapes[n] != shape)
    given, repeated = reader.shapes[whole], reader.shapes[other]
    if given != shape or len(repeated) != len(shape) or (repeated != shape and len(shape) > 3):
        reader.refuse(node, f"it multiplies values of shapes {given} and {repeated}")
    out, sizes = three(shape), three(repeated)
    steps = (sizes[1] * sizes[2], sizes[2], 1)
    reader.emit(
        "MULTIPLY",
        node,
        module.output.grid,
        operands=[reader.operand(whole), reader.operand(other)],
        shape_in=out,
        shape_out=out,
        strides=tuple(step if size > 1 else 0 for step, size in zip(steps, sizes, strict=True)),
        **reader.constants(node, module.output),
    )


def read_softmax(reader: Reader, node: fx.Node, module: ExactSoftmax) -> None:
    """Rows along the axis, values of a row apart by the size of the axes behind it."""
    shape = reader.shapes[node]
    axis = module.dim % (len(shape) + 1) - 1
    if axis < 0:
        reader.refuse(node, "it is a softmax over the batch")
    count = shape[axis]
    rows = math.prod(shape[:axis]), count, math.prod(shape[axis + 1 :])
    (table,) = module.tables(count, module.output.scale.device)
    reader.emit(
        "SOFTMAX",
        node,
        module.output.grid,
        offsets=[int(e) for e in table.tolist()],
        shape_in=rows,
        shape_out=rows,
        strides=(*(1.0 / module.output.grid.scale).as_integer_ratio(), 0),
    )
