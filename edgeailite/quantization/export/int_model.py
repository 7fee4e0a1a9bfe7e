"""INT_MODEL: the integer graph in operators that take and return integers (QLinearConv, QGemm)."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from edgeailite.quantization.export.formats import OnnxOptions, writer
from edgeailite.quantization.integer.layer import IntegerLayer

if TYPE_CHECKING:
    import onnx

    from edgeailite.quantization.graph.model import GraphModel

_LOG = logging.getLogger(__name__)


@writer(
    "INT_MODEL",
    source="converted",
    arithmetic="scale",
    description="the integer graph in integer operators: QLinearConv, and ONNX Runtime's QGemm, "
    "QLinearAdd, ...",
)
def write_int(
    converted: GraphModel,
    example_inputs: tuple[Tensor, ...],
    path: str | os.PathLike[str],
    options: OnnxOptions,
) -> Path:
    """Write a converted model in integer operators.

    Operators of the domain ``com.microsoft`` are ONNX Runtime's. An operator without an integer
    form stays between DequantizeLinear and QuantizeLinear; a warning counts them. Grids that
    QuantizeLinear does not compute are written as integers carried in float.
    """
    from edgeailite.quantization.export.functions import write_tables
    from edgeailite.quantization.export.onnx_file import write_onnx
    from edgeailite.quantization.export.qlinear import use_integer_operators

    def rewrite(proto: onnx.ModelProto) -> None:
        write_tables(proto, converted)
        _warn_of_floats(carried, use_integer_operators(proto))

    layers = [m for m in converted.modules() if isinstance(m, IntegerLayer)]
    carried = [layer.layer_path for layer in layers if not layer.has_onnx_form]
    return write_onnx(
        converted,
        example_inputs,
        path,
        options,
        model_format="INT_MODEL",
        rewrite=rewrite,
    )


def _warn_of_floats(carried: list[str], left: Counter[str]) -> None:
    """Name the layers carried in float, and count the operators that have no integer form."""
    if carried:
        _LOG.warning(
            "%d layers have a grid that no ONNX operator computes (%s...): their integers are "
            "carried in float.",
            len(carried),
            carried[0],
        )
    if left:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(left.items()))
        _LOG.warning("No integer operator for %s: quantize nodes stay around them.", counts)
