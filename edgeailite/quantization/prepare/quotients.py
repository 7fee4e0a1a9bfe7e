"""Divisions between grids, which round small divisors to zero: a module knows what that is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from edgeailite.quantization.graph.calls import Call, argument, operands, operation_of
from edgeailite.quantization.graph.model import add_module_at, free_path, graph_of, module_of, tidy
from edgeailite.quantization.graph.operations import DIV
from edgeailite.quantization.graph.patterns import operation_path, quantizer_behind, quantizer_of
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.modules.quotient import Quotient

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel


def insert_quotients(model: GraphModel) -> None:
    """Let a :class:`Quotient` compute each division of values on grids whose result has one.

    Args:
        model: With its quantizers; its graph is changed.
    """
    for node in list(graph_of(model).nodes):
        if operation_of(node) is DIV and node.op != "call_module":
            _insert_quotient(model, node)
    tidy(model)


def _insert_quotient(model: GraphModel, node: fx.Node) -> None:
    grids = [quantizer_of(operand) for operand in operands(node)]
    if None in grids or quantizer_behind(node) is None:
        return
    divided = argument(node, "input"), argument(node, "other")
    source = quantizer_of(divided[1])
    assert source is not None
    quantizer = module_of(model, source)
    assert isinstance(quantizer, FakeQuantize)
    path = free_path(model, operation_path(node))
    add_module_at(model, path, Quotient(quantizer))
    with graph_of(model).inserting_before(node):
        call = graph_of(model).call_module(path, divided)
    read = Call(DIV, {"input": 0, "other": 1}, {"rounding_mode": None})
    call.meta.update(call=read, owner=node.meta.get("owner", ""))
    node.replace_all_uses_with(call)
    graph_of(model).erase_node(node)
