"""Proof of exactness for each kind of operation, or the comparison in its place."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator
from functools import singledispatch
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn

from edgeailite.quantization.graph.model import graph_of, module_of
from edgeailite.quantization.graph.recording import Hook
from edgeailite.quantization.integer.affine import IntegerAffine, IntegerPReLU
from edgeailite.quantization.integer.exact_sums import IntegerAverage, IntegerFold, IntegerResize
from edgeailite.quantization.integer.grid import (
    ApplyScale,
    Grid,
    IntegerConstant,
    IntegerOperator,
    Quantize,
)
from edgeailite.quantization.integer.interpolation import IntegerInterpolation
from edgeailite.quantization.integer.layer import EXACT_IN_FLOAT32, IntegerLayer
from edgeailite.quantization.integer.normalizations import IntegerNormalization, IntegerSoftmax
from edgeailite.quantization.integer.operators import (
    IntegerAdd,
    IntegerDiv,
    IntegerMatMul,
    IntegerMul,
)
from edgeailite.quantization.integer.table import IntegerTable
from edgeailite.quantization.report.reasons import float_operations, operation_name
from edgeailite.quantization.verify.verification import OperationKind

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel

POWERS_OF_TWO = "powers of two, sums below 2^24: exact in float32 and in 32-bit integers"
SINGLE_ROUNDINGS = "exact sums, then single operations, which IEEE 754 rounds alike"
ROUNDED_ONCE = "single operations, which IEEE 754 rounds alike"
HELD_BY_FLOAT = "products and sums that float32 or float64 holds, one rounding"
LOOKED_UP = "a table"
INPUT = "input"


def operation_kinds(
    converted: GraphModel,
    lengths: dict[nn.Module, int],
    num_values: int,
    prepared: GraphModel | None = None,
    onnx_path: str | os.PathLike[str] | None = None,
) -> list[OperationKind]:
    """List the kinds of operations with what shows that they are exact.

    Args:
        converted: Integer graph, which has run.
        lengths: Products in each sum of a matrix product, see :func:`length_hooks`.
        num_values: Output values that were compared.
        prepared: Model that it was made of; it knows what stays in float, and why.
        onnx_path: File of it.
    """
    tables = {} if onnx_path is None else _tables_of_file(converted, onnx_path)
    found: Counter[tuple[str, str]] = Counter()
    for node in graph_of(converted).nodes:
        module = module_of(converted, node)
        if isinstance(module, Quantize):
            kind = _rounded(converted, node.all_input_nodes[0])
            found[kind, ROUNDED_ONCE if kind == INPUT else ""] += 1
        elif isinstance(module, IntegerTable):
            unknown = LOOKED_UP if onnx_path is None else ""
            found["function", tables.get(module.quantizer_path, unknown)] += 1
        elif isinstance(module, IntegerOperator):
            found[_kind(module), proof(module, lengths.get(module))] += 1
    compared = f"compared on {num_values} output values"
    kinds = [OperationKind(kind, n, bool(by), by or compared) for (kind, by), n in found.items()]
    if prepared is not None:
        floats = Counter(float_operations(prepared).values())
        kinds += [
            OperationKind(e.operation, n, False, f"in float: {e.reason}") for e, n in floats.items()
        ]
    return kinds


def _tables_of_file(converted: GraphModel, path: str | os.PathLike[str]) -> dict[str, str]:
    if not any(isinstance(m, IntegerTable) for m in converted.modules()):
        return {}
    from edgeailite.quantization.export.functions import functions_of_file

    return functions_of_file(path, converted)


def _rounded(converted: GraphModel, node: fx.Node) -> str:
    """Name of an operation on real values whose result is rounded to a grid."""
    if node.op == "placeholder":
        return INPUT
    if isinstance(module_of(converted, node), ApplyScale):
        (node,) = node.all_input_nodes
    return f"{operation_name(converted, node)}, rounded"


def _kind(module: IntegerOperator) -> str:
    if not isinstance(module, IntegerLayer):
        return type(module).__name__.removeprefix("Integer")
    rank = module.weight.dim() - 2
    transposed = "Transpose" if module.operation.is_transposed else ""
    return f"Conv{transposed}{rank}d" if rank else "Linear"


def length_hooks(
    converted: nn.Module, lengths: dict[nn.Module, int]
) -> Iterator[tuple[nn.Module, Hook]]:
    """Hooks that write down how many products the sums of matrix products have.

    Args:
        converted: Integer graph.
        lengths: The largest of each module; filled.
    """

    def hook(module: nn.Module, args: tuple[Any, ...], _output: Tensor) -> None:
        lengths[module] = max(lengths.get(module, 0), args[0].shape[-1])

    for module in converted.modules():
        if isinstance(module, IntegerMatMul) and module.equation is None:
            yield module, hook


@singledispatch
def proof(operator: nn.Module, length: int | None) -> str:
    """Reason for which all machines compute the same integers; empty: none is known.

    Args:
        operator: Of an integer graph.
        length: Products in its sums, if known.
    """
    return ""


@proof.register
def _(operator: IntegerLayer, length: int | None) -> str:
    scales = operator.weight_scale.flatten().tolist()
    grids = [operator.input.grid, *([] if operator.output is None else [operator.output.grid])]
    exact = _are_powers_of_two(*grids) and all(math.frexp(scale)[0] == 0.5 for scale in scales)
    return POWERS_OF_TWO if exact and operator.bound < EXACT_IN_FLOAT32 else ""


@proof.register(IntegerSoftmax)
@proof.register(IntegerNormalization)
@proof.register(IntegerAverage)
@proof.register(IntegerFold)
@proof.register(IntegerResize)
def _(operator: IntegerOperator, length: int | None) -> str:
    return SINGLE_ROUNDINGS


@proof.register
def _(operator: IntegerDiv, length: int | None) -> str:
    return ROUNDED_ONCE


@proof.register(IntegerAffine)
@proof.register(IntegerPReLU)
@proof.register(IntegerInterpolation)
def _(operator: IntegerOperator, length: int | None) -> str:
    return HELD_BY_FLOAT


@proof.register
def _(operator: IntegerConstant, length: int | None) -> str:
    return "integers of the file"


@proof.register
def _(operator: IntegerAdd, length: int | None) -> str:
    grids = [m.grid for m in (operator.left, operator.right, operator.output)]
    largest = sum((grid.max_magnitude + abs(grid.zero_point)) * grid.scale for grid in grids)
    return _exact(grids, largest / min(grid.scale for grid in grids))


@proof.register
def _(operator: IntegerMul, length: int | None) -> str:
    left, right, output = (m.grid for m in (operator.left, operator.right, operator.output))
    scale = left.scale * right.scale
    product = left.max_magnitude * right.max_magnitude * scale
    largest = product + abs(output.zero_point) * output.scale
    return _exact([left, right, output], largest / min(scale, output.scale))


@proof.register
def _(operator: IntegerMatMul, length: int | None) -> str:
    grids = [m.grid for m in (operator.left, operator.right, operator.output)]
    if length is None:
        return ""
    return _exact(grids, length * grids[0].max_magnitude * grids[1].max_magnitude)


def _are_powers_of_two(*grids: Grid) -> bool:
    """Return True if neither scales nor the place of a zero point can move a tie."""
    return all(grid.is_power_of_two and grid.zero_point % 2 == 0 for grid in grids)


def _exact(grids: list[Grid], largest: float) -> str:
    return POWERS_OF_TWO if _are_powers_of_two(*grids) and largest < EXACT_IN_FLOAT32 else ""
