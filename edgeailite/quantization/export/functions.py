"""Pointwise functions in a file: between QuantizeLinear nodes where that is proven, else as tables.

``DequantizeLinear, f, QuantizeLinear`` is what every importer knows, and fast. Whether it gives the
integers of the table is tried on all of them: in ONNX Runtime without and with optimizations, many
at once and one at a time, for kernels compute the rest of a vector in another way.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from edgeailite.quantization.export.proto import ProtoGraph
from edgeailite.quantization.integer.table import IntegerTable

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel
    from edgeailite.quantization.integer.grid import Grid

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Function:
    """A pointwise function in a file.

    Attributes:
        path: Its quantizer's, which is the name of its result.
        inputs: All integers of the source's grid.
        results: Those of the table.
        source: Name of the tensor that it reads.
        nodes: From DequantizeLinear to QuantizeLinear.
    """

    path: str
    inputs: np.ndarray
    results: np.ndarray
    source: str
    nodes: list[NodeProto]


def write_tables(proto: onnx.ModelProto, model: GraphModel) -> None:
    """Write all functions as tables.

    Args:
        proto: File with its tensors named.
        model: Integer graph that it was made of.
    """
    graph = ProtoGraph(proto.graph)
    _replace(graph, _functions(graph, model))
    graph.write()


def keep_proven(proto: onnx.ModelProto, model: GraphModel) -> None:
    """Keep the functions that ONNX Runtime computes as their tables say; write the others as those.

    Args:
        proto: File in the opset that it will have, with its tensors named.
        model: Integer graph that it was made of.
    """
    graph = ProtoGraph(proto.graph)
    functions = _functions(graph, model)
    wrong = _unproven(graph, functions, proto) if functions else []
    if wrong:
        _LOG.info(
            "%d of %d functions are written as tables: ONNX Runtime's float kernels give other "
            "integers ('%s', ...).",
            len(wrong),
            len(functions),
            wrong[0].path,
        )
    _replace(graph, wrong)
    graph.write()


def functions_of_file(path: str | os.PathLike[str], model: GraphModel) -> dict[str, str]:
    """Say of each function of a file how it is known to give the integers of its table.

    Args:
        path: File of `model`.
        model: Integer graph, which has run.

    Returns:
        By the paths of the functions' quantizers; one for which nothing is known is left out.
    """
    proto = onnx.load(path)
    graph = ProtoGraph(proto.graph)
    functions = _functions(graph, model)
    wrong = {f.path for f in _unproven(graph, functions, proto)} if functions else set()
    found = {f.path: "all inputs tried in ONNX Runtime" for f in functions if f.path not in wrong}
    for module in model.modules():
        if not isinstance(module, IntegerTable):
            continue
        maker = graph.makers.get(module.quantizer_path)
        if maker is None or maker.op_type != "Gather" or maker.input[0] not in graph.initializers:
            continue
        table = onnx.numpy_helper.to_array(graph.initializers[maker.input[0]])
        if np.array_equal(table, module.table(*module.numbers).cpu().numpy()):
            found[module.quantizer_path] = "its table is in the file"
    return found


def _functions(graph: ProtoGraph, model: GraphModel) -> list[_Function]:
    """Functions that the file holds between quantize nodes."""
    found = []
    for module in model.modules():
        if not isinstance(module, IntegerTable):
            continue
        last = graph.makers.get(module.quantizer_path)
        if last is None or last.op_type != "QuantizeLinear":
            continue
        nodes = _between(graph, last)
        table = module.table(*module.numbers).cpu().numpy()
        held = np.array(module.input.grid.integers)
        inputs = _as_stored(graph, nodes[0], held, module.input.grid)
        results = _as_stored(graph, last, table, module.output.grid)
        if inputs is not None and results is not None:
            source = nodes[0].input[0]
            found.append(_Function(module.quantizer_path, inputs, results, source, nodes))
    return found


def _as_stored(
    graph: ProtoGraph, node: NodeProto, integers: np.ndarray, grid: Grid
) -> np.ndarray | None:
    """Integers of a grid as a file holds them, where zero points may be moved for unsigned types.

    None: `node` is no quantize node with a zero point, so another tool has changed the file.
    """
    quantizes = node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) == 3
    zero_point = graph.constant(node.input[2]) if quantizes else None
    if zero_point is None:
        return None
    moved = integers.astype(np.int64) - grid.zero_point + int(zero_point)
    return moved.astype(zero_point.dtype)


def _between(graph: ProtoGraph, last: NodeProto) -> list[NodeProto]:
    """Nodes from a DequantizeLinear to a QuantizeLinear, in their order."""
    found, pending = {id(last)}, [last.input[0]]
    while pending:
        maker = graph.makers.get(pending.pop())
        if maker is None or id(maker) in found:
            continue
        found.add(id(maker))
        if maker.op_type != "DequantizeLinear":
            pending.extend(filter(None, maker.input))
    return [node for node in graph.nodes if id(node) in found]


def _unproven(
    graph: ProtoGraph, functions: list[_Function], proto: onnx.ModelProto
) -> list[_Function]:
    """Functions for which an integer has another result in ONNX Runtime."""
    import onnxruntime

    proof = _proof(graph, functions, proto).SerializeToString()
    levels = onnxruntime.GraphOptimizationLevel
    wrong: set[str] = set()
    for level in (levels.ORT_DISABLE_ALL, levels.ORT_ENABLE_ALL):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level, options.log_severity_level = level, 3
        session = onnxruntime.InferenceSession(proof, options, ["CPUExecutionProvider"])
        for places in _places(functions):
            pairs = list(zip(functions, places, strict=True))
            feed = {f"input_{i}": f.inputs[place] for i, (f, place) in enumerate(pairs)}
            for (f, place), found in zip(pairs, session.run(None, feed), strict=True):
                if not np.array_equal(found, f.results[place]):
                    wrong.add(f.path)
    return [f for f in functions if f.path in wrong]


def _places(functions: list[_Function]) -> Iterator[list[np.ndarray]]:
    """Places of the integers of each run: all of them at once, then one at a time."""
    counts = [len(f.inputs) for f in functions]
    yield [np.arange(count) for count in counts]
    for place in range(max(counts)):
        yield [np.array([place % count]) for count in counts]


def _proof(
    graph: ProtoGraph, functions: list[_Function], proto: onnx.ModelProto
) -> onnx.ModelProto:
    """A model of the functions alone, with an input and an output for each."""
    nodes: list[NodeProto] = []
    inputs: list[onnx.ValueInfoProto] = []
    outputs: list[onnx.ValueInfoProto] = []
    constants: dict[str, TensorProto] = {}
    for i, function in enumerate(functions):
        made = {name for node in function.nodes for name in node.output}
        for node in function.nodes:
            copy = NodeProto()
            copy.CopyFrom(node)
            copy.name = ""
            names = {name: f"{i}/{name}" for name in made} | {function.source: f"input_{i}"}
            for values in (copy.input, copy.output):
                values[:] = [names.get(v, v) for v in values]
            nodes.append(copy)
            constants |= {n: graph.initializers[n] for n in node.input if n in graph.initializers}
        kinds = map(
            helper.np_dtype_to_tensor_dtype, (function.inputs.dtype, function.results.dtype)
        )
        for kind, name, infos in zip(
            kinds, (f"input_{i}", f"{i}/{function.path}"), (inputs, outputs), strict=True
        ):
            infos.append(helper.make_tensor_value_info(name, kind, [f"n{i}"]))
    made_graph = helper.make_graph(nodes, "proof", inputs, outputs, list(constants.values()))
    return helper.make_model(
        made_graph, opset_imports=list(proto.opset_import), ir_version=proto.ir_version or 8
    )


def _replace(graph: ProtoGraph, functions: Iterable[_Function]) -> None:
    """Put ``Cast, Gather`` in the place of functions; Gather counts from the smallest integer."""
    for function in functions:
        last = function.nodes[-1]
        smallest = int(function.inputs.min())
        index = graph.fresh(f"{function.path}.index")
        made = [helper.make_node("Cast", [function.source], [index], to=TensorProto.INT64)]
        if smallest:
            shifted = graph.fresh(f"{function.path}.place")
            offset = graph.add_constant(f"{function.path}.smallest", np.int64(smallest))
            made.append(helper.make_node("Sub", [index, offset], [shifted]))
            index = shifted
        table = graph.add_constant(f"{function.path}.table", function.results)
        made.append(helper.make_node("Gather", [table, index], [function.path]))
        place = next(i for i, node in enumerate(graph.nodes) if node is last)
        graph.nodes[place : place + 1] = made
        graph.index()
    graph.prune()
