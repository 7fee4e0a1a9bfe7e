"""Sums with a product or a quotient in one call, as the operations that the engine knows."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from edgeailite.quantization.graph.model import TRAINING_ONLY, graph_of, tidy

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel

_INNER: dict[str, Callable[..., Any]] = {"addcmul": operator.mul, "addcdiv": operator.truediv}


def open_fused_sums(model: GraphModel) -> None:
    """Let ``a + b * c`` stand for ``torch.addcmul(a, b, c)``, ``a + b / c`` for ``addcdiv``.

    Args:
        model: Captured; its graph is changed.
    """
    graph = graph_of(model)
    for name, inner in _INNER.items():
        for node in [
            *graph.find_nodes(op="call_function", target=getattr(torch, name)),
            *graph.find_nodes(op="call_method", target=name),
        ]:
            value = node.kwargs.get("value", 1)
            if len(node.args) == 3 and set(node.kwargs) <= {"value"}:
                _open(graph, node, inner, value)
    tidy(model)


def _open(graph: fx.Graph, node: fx.Node, inner: Callable[..., Any], value: Any) -> None:
    addend, *pair = node.args
    with graph.inserting_before(node):
        made = [graph.call_function(inner, tuple(pair))]
        if isinstance(value, fx.Node) or value != 1:
            made.append(graph.call_function(operator.mul, (made[-1], value)))
        made.append(graph.call_function(operator.add, (addend, made[-1])))
    for call in made:
        call.meta.update({k: v for k, v in node.meta.items() if k in ("owner", TRAINING_ONLY)})
    node.replace_all_uses_with(made[-1])
    graph.erase_node(node)
