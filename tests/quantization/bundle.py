"""Many converted networks in one file: an export costs half a second whatever it holds."""

from __future__ import annotations

from pathlib import Path

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
    graph.output(tuple(results))
    model = GraphModel(root.eval(), graph)
    first, _ = next(iter(networks.values()))
    program_of(model).stage, program_of(model).target = "integer", target_of(first.module)
    return ConvertedModule(model, first.format)


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


def run_together(networks: Networks, folder: Path) -> dict[tuple[str, str], tuple[Tensor, ...]]:
    """ONNX Runtime's outputs by network and optimizations (``"off"``, ``"on"``), of one file."""
    inputs = tuple(x for _, own in networks.values() for x in own)
    path = bundle(networks).export(inputs, folder / "networks.onnx")
    found = {}
    for optimization in OPTIMIZATIONS:
        values = iter(run_onnx(path, inputs, optimization))
        for name, (converted, own) in networks.items():
            count = len(outputs(converted(*own)))
            found[name, optimization] = tuple(next(values) for _ in range(count))
        assert next(values, None) is None
    return found
