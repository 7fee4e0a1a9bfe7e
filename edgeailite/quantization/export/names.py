"""Tensor names that a reader knows: those of the quantizers and layers of the model."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from typing import Any

import onnx

from edgeailite.quantization.export.proto import ProtoGraph
from edgeailite.quantization.graph.model import GraphModel
from edgeailite.quantization.targets.tinpu.operators import OffsetScaleShift, WindowAverage

_SCOPES = "pkg.torch.onnx.name_scopes"
_PARAMETERS = {"scale": 1, "zero_point": 2}


def name_tensors(proto: onnx.ModelProto, model: GraphModel) -> None:
    """Name tensors after the model.

    What a module with a `quantizer_path` returns gets that name, the first time it is used; weights
    and biases get the name of their layer. Steps and zero points are named after the tensor that
    has them first (equal ones are stored once). Inputs and outputs keep their names.

    Args:
        proto: As the exporter wrote it, with its notes about scopes.
        model: What was exported.
    """
    graph = ProtoGraph(proto.graph)
    _give(graph, _quantized_tensors(graph, model))
    _give(graph, _layer_parameters(graph, model))
    _give(graph, _offsets_and_factors(graph, model))
    _give(graph, _float_twins(graph))
    _give(graph, _grid_parameters(graph))
    graph.write()


def _give(graph: ProtoGraph, wanted: list[tuple[str, str]]) -> None:
    """Rename tensors, ``(old, new)``; who has a wanted name already makes room, if it may."""
    names: dict[str, str] = {}
    given: set[str] = set()
    reserved = {new for _, new in wanted} | graph.fixed
    for old, new in wanted:
        if old in names or old in graph.fixed:
            continue
        candidate, count = new, 0
        while candidate in given | graph.fixed or (count and candidate in reserved):
            count += 1
            candidate = f"{new}_{count}"
        names[old] = candidate
        given.add(candidate)
    for name in given - names.keys():
        if name in graph.taken:
            names[name] = graph.fresh(f"{name}_value")
    graph.rename(names)


def _innermost_module(node: onnx.NodeProto) -> str | None:
    """Path of the module whose ``forward`` made the node; its last scope is the operation."""
    notes = {p.key: p.value for p in node.metadata_props}
    scopes = ast.literal_eval(notes[_SCOPES]) if _SCOPES in notes else []
    return scopes[-2] if len(scopes) > 1 else None


def _quantized_tensors(graph: ProtoGraph, model: GraphModel) -> list[tuple[str, str]]:
    """What each call of a quantizer's module returns; integers, if the module dequantizes too."""
    calls = Counter(str(node.target) for node in model.graph.find_nodes(op="call_module"))
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
    # Before its result, a module may leave a constant that the exporter shares with another one.
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


def _offsets_and_factors(graph: ProtoGraph, model: GraphModel) -> list[tuple[str, str]]:
    """The constants behind an accumulator: ``<layer>.offset`` and ``<layer>.factor``."""
    names = {"Add": "offset", "Mul": "factor"}
    wanted = []
    for node in graph.nodes:
        path = _innermost_module(node) or ""
        if node.op_type not in names or node.input[1] not in graph.initializers:
            continue
        module: Any = model.get_submodule(path)
        if not isinstance(module, OffsetScaleShift | WindowAverage):
            continue
        owner: Any = model.get_submodule(path.removesuffix(".output"))
        place = getattr(owner, "layer_path", "") or owner.quantizer_path
        wanted.append((node.input[1], f"{place}.{names[node.op_type]}"))
    return wanted


def _float_twins(graph: ProtoGraph) -> list[tuple[str, str]]:
    """The two sides of a quantize node: ``x`` and ``x.quantized``, ``x.real`` and ``x``."""
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
