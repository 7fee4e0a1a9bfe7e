"""Name the tensors of a file after the quantizers and layers of the model."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import onnx

from edgeailite.quantization.export.proto import ProtoGraph
from edgeailite.quantization.graph.model import graph_of

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel

_SCOPES = "pkg.torch.onnx.name_scopes"
_PARAMETERS = {"scale": 1, "zero_point": 2}


def name_tensors(proto: onnx.ModelProto, model: GraphModel) -> None:
    """Name tensors after the model.

    The result of a module with a `quantizer_path` gets that name, the first time it is used.
    Weights and biases get the name of their layer, and so do the constants that a module names in
    `constant_names`. Scales and zero points are named after the first tensor that has them (equal
    ones are stored once). Inputs and outputs keep their names.

    Args:
        proto: As the exporter wrote it, with its notes about scopes.
        model: The exported model.
    """
    graph = ProtoGraph(proto.graph)
    _give(graph, _quantized_tensors(graph, model))
    _give(graph, _layer_parameters(graph, model))
    _give(graph, _named_constants(graph, model))
    _give(graph, _float_twins(graph))
    _give(graph, _grid_parameters(graph))
    graph.write()


def _give(graph: ProtoGraph, wanted: list[tuple[str, str]]) -> None:
    """Rename tensors, ``(old, new)``; another tensor that has a wanted name gets a new one."""
    names: dict[str, str] = {}
    given: set[str] = set()
    reserved = {new for _, new in wanted} | graph.interface
    for old, new in wanted:
        if old in names or old in graph.interface:
            continue
        candidate, count = new, 0
        while candidate in given | graph.interface or (count and candidate in reserved):
            count += 1
            candidate = f"{new}_{count}"
        names[old] = candidate
        given.add(candidate)
    for name in given - names.keys():
        if name in graph.taken:
            names[name] = graph.fresh(f"{name}_value")
    graph.rename(names)


def _innermost_module(node: onnx.NodeProto) -> str | None:
    """Return the path of the module whose ``forward`` made the node.

    The last of a node's scopes is the operation, the one before it the module.
    """
    notes = {p.key: p.value for p in node.metadata_props}
    scopes = ast.literal_eval(notes[_SCOPES]) if _SCOPES in notes else []
    return scopes[-2] if len(scopes) > 1 else None


def _quantized_tensors(graph: ProtoGraph, model: GraphModel) -> list[tuple[str, str]]:
    """Name the result of each call of a quantizer's module (its integers, if it dequantizes)."""
    calls = Counter(str(node.target) for node in graph_of(model).find_nodes(op="call_module"))
    owners = {
        f"{path}{part}": path
        for path in calls
        if getattr(model.get_submodule(path), "quantizer_path", "")
        for part in ("", ".output", ".quantize")
    }
    inside = {id(node): owners.get(_innermost_module(node) or "") for node in graph.nodes}
    leaving: dict[str, list[str]] = defaultdict(list)
    for node in graph.nodes:
        path = inside[id(node)]
        if path is not None:
            readers = graph.readers[node.output[0]]
            if any(inside[id(reader)] != path for reader in readers):
                leaving[path].append(node.output[0])
    # Apart from its result, a module may leave a constant that the exporter shares with others.
    results = {name: path for path, names in leaving.items() for name in names[-calls[path] :]}
    return [(n, str(model.get_submodule(path).quantizer_path)) for n, path in results.items()]


def _layer_parameters(graph: ProtoGraph, model: GraphModel) -> list[tuple[str, str]]:
    return [
        (f"{path}.{name}", f"{module.layer_path}.{name}")
        for path, module in model.named_modules()
        if getattr(module, "layer_path", "")
        for name in ("weight", "bias")
        if f"{path}.{name}" in graph.initializers
    ]


def _named_constants(graph: ProtoGraph, model: GraphModel) -> list[tuple[str, str]]:
    """Name the constants of modules that say so: ``<layer>.offset`` and ``<layer>.factor``.

    A module's `constant_names` has an ONNX operator and the name of the constant that it reads.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    wanted = []
    for node in graph.nodes:
        constants = [name for name in node.input if name in graph.initializers]
        if not constants:
            continue
        path = _innermost_module(node) or ""
        names = getattr(modules.get(path), "constant_names", {})
        if node.op_type in names:
            owner: Any = modules[path.removesuffix(".output")]
            place = getattr(owner, "layer_path", "") or owner.quantizer_path
            wanted.append((constants[0], f"{place}.{names[node.op_type]}"))
    return wanted


def _float_twins(graph: ProtoGraph) -> list[tuple[str, str]]:
    """Name both sides of a quantize node: ``x`` and ``x.quantized``, ``x.real`` and ``x``."""
    suffixes = {"QuantizeLinear": "quantized", "DequantizeLinear": "real"}
    automatic = {n.output[0] for n in graph.nodes if n.output[0].startswith("_symbolic")}
    names: dict[str, str] = {}
    for node in graph.nodes:
        if node.op_type in suffixes and node.output[0] in automatic:
            source = names.get(node.input[0], node.input[0])
            root = source.removesuffix(".real").removesuffix(".quantized")
            names[node.output[0]] = f"{root}.{suffixes[node.op_type]}"
    return list(names.items())


def _grid_parameters(graph: ProtoGraph) -> list[tuple[str, str]]:
    wanted = []
    for node in graph.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            tensor = node.output[0] if node.op_type == "QuantizeLinear" else node.input[0]
            wanted += [
                (node.input[i], f"{tensor}.{name}")
                for name, i in _PARAMETERS.items()
                if node.input[i] in graph.initializers
            ]
    return wanted
