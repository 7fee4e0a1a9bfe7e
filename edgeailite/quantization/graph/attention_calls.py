"""Calls of ``F.scaled_dot_product_attention`` in operations that the engine knows.

Reference: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.2.1.
"""

from __future__ import annotations

import inspect
import math
import operator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import fx

from edgeailite.quantization.graph.model import graph_of, tidy
from edgeailite.quantization.graph.value_types import TensorType
from edgeailite.quantization.graph.variants import is_constant

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel


def _parameters(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: Any = None,
    enable_gqa: bool = False,
) -> None:
    """Arguments of the function, which torch's builtin does not name."""


_SIGNATURE = inspect.signature(_parameters)


def open_attention(model: GraphModel) -> None:
    """Let a product, a softmax and a product stand for each call, where all of them are known.

    Calls with dropout, with causal or grouped queries, or with a mask that depends on the input,
    stay what they are.

    Args:
        model: Captured; its graph is changed.
    """
    graph = graph_of(model)
    for node in list(graph.find_nodes(op="call_function", target=F.scaled_dot_product_attention)):
        given = _SIGNATURE.bind(*node.args, **node.kwargs)
        given.apply_defaults()
        options = dict(given.arguments)
        if options["dropout_p"] or options["is_causal"] or options["enable_gqa"]:
            continue
        if _is_known_mask(options["attn_mask"]):
            with graph.inserting_before(node):
                node.replace_all_uses_with(_Opening(graph, node.meta.get("owner", "")).of(options))
            graph.erase_node(node)
    tidy(model)


def _is_known_mask(mask: Any) -> bool:
    return mask is None or is_constant(mask) or _is_boolean_constant(mask)


def _is_boolean_constant(mask: Any) -> bool:
    known = mask.meta.get("type")
    is_boolean = isinstance(known, TensorType) and known.dtype is torch.bool
    return is_boolean and mask.meta["call"].operation.name == "scalar"


class _Opening:
    """Makes the operations of a call, of the module that called it."""

    def __init__(self, graph: fx.Graph, owner: str) -> None:
        self.graph, self.owner = graph, owner

    def of(self, options: dict[str, Any]) -> fx.Node:
        """Return the result."""
        query, key, mask, scale = (options[n] for n in ("query", "key", "attn_mask", "scale"))
        if scale is None:
            scale = self._call(operator.pow, self._method("size", query, -1), -0.5)
        keys = self._method("transpose", key, -2, -1)
        scores = self._call(operator.mul, self._call(torch.matmul, query, keys), scale)
        if mask is not None:
            if not is_constant(mask):
                mask = self._call(torch.where, mask, 0.0, -math.inf)
                mask.meta["type"] = TensorType((), torch.float32)
            scores = self._call(operator.add, scores, mask)
        weights = self._call(torch.softmax, scores, -1)
        return self._call(torch.matmul, weights, options["value"])

    def _call(self, function: Any, *args: Any) -> fx.Node:
        return self._owned(self.graph.call_function(function, args))

    def _method(self, name: str, *args: Any) -> fx.Node:
        return self._owned(self.graph.call_method(name, args))

    def _owned(self, node: fx.Node) -> fx.Node:
        node.meta["owner"] = self.owner
        return node
