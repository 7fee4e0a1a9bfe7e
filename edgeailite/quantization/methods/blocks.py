"""Blocks of a graph: parts between two values through which everything passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import fx

from edgeailite.quantization.graph.model import attribute, graph_of, module_of
from edgeailite.quantization.graph.patterns import quantizer_behind
from edgeailite.quantization.graph.running import GraphRunner
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.modules.layer_calls import (
    layer_call,
    layer_calls,
)

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel


class Block:
    """Operations whose layers are learned together, by the value of the last one.

    Args:
        model: Prepared model.
        nodes: The operations, in the order of the graph.
    """

    def __init__(self, model: GraphModel, nodes: list[fx.Node]) -> None:
        self.model, self.nodes, self.end = model, nodes, nodes[-1]
        found = (layer_call(model, node) for node in nodes)
        self.calls = [call for call in found if call is not None]
        read = (source for node in nodes for source in node.all_input_nodes)
        outside = [n for n in read if n not in nodes and n.op != "get_attr"]
        self.inputs = list(dict.fromkeys(outside))
        module = module_of(model, self.end)
        self.quantizer = module if isinstance(module, FakeQuantize) else None
        self._runner = GraphRunner(model)

    def run(self, values: dict[fx.Node, Any]) -> Any:
        """Return the last operation's value for given inputs."""
        values = dict(values)

        def value_of(node: fx.Node) -> Any:
            if node.op == "get_attr":
                return attribute(self.model, str(node.target))
            return values[node]

        for node in self.nodes:
            values[node] = self._runner.compute(node, value_of)
        return values[self.end]

    @contextmanager
    def float_at_the_end(self) -> Iterator[None]:
        """Leave the last value in float, behind its activation function."""
        if self.quantizer is None:
            yield
            return
        self.quantizer.fake_quant_enabled = False
        try:
            yield
        finally:
            self.quantizer.fake_quant_enabled = True


def find_blocks(model: GraphModel, num_layers: int) -> list[Block]:
    """Cut a graph where one value alone goes on, into parts with a number of layers.

    Args:
        model: Prepared model.
        num_layers: Smallest number of layers of a block; 1: each layer with its quantizer.
    """
    if num_layers == 1:
        pairs = [(call.node, quantizer_behind(call.node)) for call in layer_calls(model)]
        return [Block(model, [node for node in pair if node is not None]) for pair in pairs]
    found: list[Block] = []
    part: list[fx.Node] = []
    cuts = _cuts(model)
    for node in graph_of(model).nodes:
        if node.op in ("placeholder", "output", "get_attr"):
            continue
        part.append(node)
        if node in cuts and sum(layer_call(model, n) is not None for n in part) >= num_layers:
            found.append(Block(model, part))
            part = []
    while part and not isinstance(module_of(model, part[-1]), FakeQuantize):
        part.pop()
    if any(layer_call(model, node) is not None for node in part):
        found.append(Block(model, part))
    return found


def _cuts(model: GraphModel) -> set[fx.Node]:
    """Quantizers behind which nothing reads a value from before them."""
    order = {node: i for i, node in enumerate(graph_of(model).nodes)}
    found, last_read = set(), -1
    for node, position in order.items():
        if isinstance(module_of(model, node), FakeQuantize) and last_read <= position:
            found.add(node)
        if node.op != "get_attr":
            last_read = max([last_read, *(order[user] for user in node.users)])
    return found
