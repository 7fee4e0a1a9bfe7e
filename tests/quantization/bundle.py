"""Many converted networks in one file: an export costs half a second whatever it holds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx
from torch import Tensor, fx, nn

from edgeailite.quantization.graph.model import GraphModel, graph_of, program_of, target_of
from edgeailite.quantization.wrappers import ConvertedModule
from tests.quantization.helpers import OPTIMIZATIONS, outputs, run_onnx

Networks = dict[str, tuple[ConvertedModule, tuple[Tensor, ...]]]


def bundle(networks: Networks) -> ConvertedModule:
    """Put the networks side by side; each keeps its own inputs, and its outputs are a tuple."""
    root, graph, results = nn.Module(), fx.Graph(), []
    for number, (converted, _) in enumerate(networks.values()):
        root.add_module(f"network{number}", converted.module)
        results.append(_copy_into(graph, graph_of(converted.module), f"network{number}"))
    first, _ = next(iter(networks.values()))
    (own_end,) = graph_of(first.module).find_nodes(op="output")
    graph.output(tuple(results)).meta = own_end.meta.copy()
    model = GraphModel(root.eval(), graph)
    program_of(model).stage, program_of(model).target = "integer", target_of(first.module)
    return type(first)(model, first.format)


def _copy_into(graph: fx.Graph, part: fx.Graph, path: str) -> fx.node.Argument:
    copies: dict[fx.Node, fx.Node] = {}
    for node in part.nodes:
        if node.op == "output":
            return fx.map_arg(node.args[0], copies.__getitem__)
        copies[node] = copy = graph.node_copy(node, copies.__getitem__)
        if node.op in ("call_module", "get_attr"):
            copy.target = f"{path}.{node.target}"
        if node.op == "placeholder":
            copy.target = copy.name
    raise AssertionError("A graph without an output.")


def inputs_of(networks: Networks, part: slice = slice(None)) -> tuple[Tensor, ...]:
    """Inputs of all networks, in the order of the file; `part`: elements of their batches."""
    return tuple(x[part] for _, own in networks.values() for x in own)


def by_network(networks: Networks, values: Iterable[Tensor]) -> dict[str, tuple[Tensor, ...]]:
    """Sort the file's outputs into those of each network."""
    found, left = {}, iter(values)
    for name, (converted, _) in networks.items():
        (result,) = graph_of(converted.module).find_nodes(op="output")
        count = len(result.args[0]) if isinstance(result.args[0], tuple | list) else 1
        found[name] = tuple(next(left) for _ in range(count))
    assert next(left, None) is None
    return found


def nodes_by_network(networks: Networks, graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """Nodes of the file that read each network's inputs, directly or through others."""
    found, left = {}, iter(graph.input)
    for name, (_, own) in networks.items():
        reached = {next(left).name for _ in own}
        found[name] = []
        for node in graph.node:
            if reached.intersection(node.input):
                reached.update(node.output)
                found[name].append(node)
    return found


def run_together(
    networks: Networks, folder: Path, **options: object
) -> dict[tuple[str, str], tuple[Tensor, ...]]:
    """ONNX Runtime's outputs by network and optimizations (``"off"``, ``"on"``), of one file.

    Args:
        networks: Converted networks and their inputs.
        folder: Where the file is written, as ``networks.onnx``.
        options: Those of ``export``.
    """
    inputs = inputs_of(networks)
    path = bundle(networks).export(inputs, folder / "networks.onnx", **options)
    return {
        (name, optimization): values
        for optimization in OPTIMIZATIONS
        for name, values in by_network(networks, run_onnx(path, inputs, optimization)).items()
    }


def differing(networks: Networks, folder: Path, **options: object) -> dict[tuple[str, str], int]:
    """Number of values in which ONNX Runtime differs from each network; 0 is left out."""
    found = {}
    for (name, optimization), values in run_together(networks, folder, **options).items():
        converted, inputs = networks[name]
        expected = outputs(converted(*inputs))
        assert [y.shape for y in values] == [y.shape for y in expected], name
        assert [y.dtype for y in values] == [y.dtype for y in expected], name
        pairs = zip(values, expected, strict=True)
        found[name, optimization] = sum(int((a != e).sum()) for a, e in pairs)
    return {key: count for key, count in found.items() if count}
