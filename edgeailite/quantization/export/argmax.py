"""The largest of the output's channels as the last step of an ONNX file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# Where ArgMax takes integers of 8 bits.
_FIRST_OPSET = 13


def append_argmax(
    source: str | os.PathLike[str], target: str | os.PathLike[str], output_name: str = "classes"
) -> Path:
    """Write a copy of an ONNX file that gives the place of the largest value along axis 1.

    Of equal values the first counts, as in ``torch.argmax``. Where the output is dequantized by one
    positive scale, the integers are compared, which is the same.

    Args:
        source: File with one output (N, C, ...).
        target: File to write; it appears complete or not at all. May be `source`.
        output_name: Name of the output (N, ...), int64.

    Returns:
        `target`.

    Raises:
        ValueError: The file has several outputs, or one without channels.
    """
    model = onnx.load(os.fspath(source))
    graph = model.graph
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    if len(graph.output) != 1 or len(graph.output[0].type.tensor_type.shape.dim) < 2:
        raise ValueError(
            f"'{os.fspath(source)}' has outputs {[o.name for o in graph.output]}; an argmax needs "
            f"one output of shape (N, C, ...)."
        )
    logits = graph.output[0]
    shape = logits.type.tensor_type.shape.dim
    dims = [d.dim_param or d.dim_value or None for i, d in enumerate(shape) if i != 1]
    compared = _integers(graph, logits.name) if opset >= _FIRST_OPSET else None
    if compared is not None:
        graph.node.remove(next(n for n in graph.node if logits.name in n.output))
    node = helper.make_node(
        "ArgMax", [compared or logits.name], [output_name], axis=1, keepdims=0, name="argmax"
    )
    graph.node.append(node)
    graph.output.remove(logits)
    graph.output.append(helper.make_tensor_value_info(output_name, TensorProto.INT64, dims))
    onnx.checker.check_model(model, full_check=True)
    path = Path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        onnx.save(model, str(temporary))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _integers(graph: onnx.GraphProto, name: str) -> str | None:
    """What a last DequantizeLinear with one scale, read by nothing else, reads; else None."""
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
