"""Append an argmax over channels to an ONNX file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeailite.files.atomic import write_atomically

if TYPE_CHECKING:
    import onnx

# The first opset whose ArgMax takes 8-bit integers.
_FIRST_INTEGER_OPSET = 13


def append_argmax(
    source: str | os.PathLike[str], target: str | os.PathLike[str], output_name: str = "classes"
) -> Path:
    """Write a copy of an ONNX file that returns the index of the largest value along axis 1.

    Of equal values the first counts, as in ``torch.argmax``. Where the output is dequantized by one
    positive scale, the integers are compared; the result is the same.

    Args:
        source: File with one output (N, C, ...).
        target: File to write; it appears complete or not at all. May be `source`.
        output_name: Name of the output (N, ...), int64.

    Returns:
        `target`.

    Raises:
        ValueError: The file has several outputs, or one without channels.
    """
    import onnx

    model = onnx.load(os.fspath(source))
    _check_output(model.graph, os.fspath(source))
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    _replace_output(model.graph, output_name, opset >= _FIRST_INTEGER_OPSET)
    onnx.checker.check_model(model, full_check=True)
    with write_atomically(target) as temporary:
        onnx.save(model, str(temporary))
    return Path(target)


def _check_output(graph: onnx.GraphProto, source: str) -> None:
    if len(graph.output) != 1 or len(graph.output[0].type.tensor_type.shape.dim) < 2:
        raise ValueError(
            f"'{source}' has outputs {[o.name for o in graph.output]}; an argmax needs "
            f"one output of shape (N, C, ...)."
        )


def _replace_output(graph: onnx.GraphProto, output_name: str, takes_integers: bool) -> None:
    """Put an ArgMax behind the graph's output; it reads the integers if there are some."""
    from onnx import TensorProto, helper

    logits = graph.output[0]
    shape = logits.type.tensor_type.shape.dim
    dims = [d.dim_param or d.dim_value or None for i, d in enumerate(shape) if i != 1]
    compared = _integers(graph, logits.name) if takes_integers else None
    if compared is not None:
        graph.node.remove(next(n for n in graph.node if logits.name in n.output))
    node = helper.make_node(
        "ArgMax", [compared or logits.name], [output_name], axis=1, keepdims=0, name="argmax"
    )
    graph.node.append(node)
    graph.output.remove(logits)
    graph.output.append(helper.make_tensor_value_info(output_name, TensorProto.INT64, dims))


def _integers(graph: onnx.GraphProto, name: str) -> str | None:
    """Return the input of a final DequantizeLinear with one scale; None if there is none."""
    from onnx import numpy_helper

    maker = next((node for node in graph.node if name in node.output), None)
    if maker is None or maker.op_type != "DequantizeLinear":
        return None
    if any(name in node.input for node in graph.node):
        return None
    scales = [numpy_helper.to_array(t) for t in graph.initializer if t.name == maker.input[1]]
    scales += [
        numpy_helper.to_array(node.attribute[0].t)
        for node in graph.node
        if node.op_type == "Constant" and maker.input[1] in node.output
    ]
    alone = len(scales) == 1 and scales[0].size == 1 and bool(np.all(scales[0] > 0))
    return maker.input[0] if alone else None
