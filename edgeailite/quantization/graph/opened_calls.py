"""Calls that are written in other operations, which the engine knows.

Attention, masks in front of a softmax, sums with a product or a quotient, writes into a part of a
tensor. A cast to the type that a value has is none.

Reference: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.2.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from edgeailite.quantization.graph.calls import arguments, operation_of
from edgeailite.quantization.graph.model import TRAINING_ONLY, graph_of, tidy
from edgeailite.quantization.graph.modes import is_training, rate_in_training
from edgeailite.quantization.graph.moves import TO_TYPE
from edgeailite.quantization.graph.normalizations import SOFTMAX
from edgeailite.quantization.graph.operations import (
    ADD,
    ADDCDIV,
    ADDCMUL,
    ATTENTION,
    CAT,
    MASKED_FILL,
    SELECT_SCATTER,
    SLICE_SCATTER,
    UNKNOWN,
    WHERE,
)
from edgeailite.quantization.graph.patterns import axis_of_softmax
from edgeailite.quantization.graph.value_types import TensorType
from edgeailite.quantization.graph.variants import HIDING, is_constant, is_scalar

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel
    from edgeailite.quantization.graph.registry import Operation

_KEPT = ("owner", TRAINING_ONLY)
# A softmax gives 0 for what is put in the place of a value, or is added to it, from here down.
HIDDEN = -1e4
_LAST = 2**63 - 1  # the end of an axis of any size, in exported graphs


def open_calls(model: GraphModel, computes: Callable[[Operation], bool]) -> None:
    """Write attention as a product, a softmax and a product; masks of a softmax as sums.

    Likewise ``addcmul``, ``addcdiv`` and writes into a part; casts that change nothing go. Calls
    with a mask that depends on the input, or with dropout in evaluation, stay what they are.

    Args:
        model: Captured; its graph is changed.
        computes: True for operations of the target; others are not written.
    """
    graph = graph_of(model)
    tracer = fx.proxy.GraphAppendingTracer(graph)
    _drop_casts(graph)
    for node in list(graph.nodes):
        opening = _OPENINGS.get(operation_of(node).name)
        if opening is None or not computes(opening.needs):
            continue
        given = arguments(node)
        if not opening.can_open(node, given):
            node.meta["call"] = replace(
                node.meta["call"], operation=UNKNOWN, reason=opening.condition
            )
            continue
        before = node.prev
        with graph.inserting_before(node):
            result = opening.open(**{k: _proxy(v, tracer) for k, v in given.items()})
        if "type" in node.meta:
            result.node.meta.setdefault("type", node.meta["type"])
        node.replace_all_uses_with(result.node)
        while before.next is not node:
            before = before.next
            before.meta.update(
                {k: v for k, v in node.meta.items() if k in ("owner", TRAINING_ONLY)}
            )
        graph.erase_node(node)
    tidy(model)


def _drop_casts(graph: fx.Graph) -> None:
    """Read float32 values themselves, not what ``x.float()`` and its like make of them."""
    for node in graph.nodes:
        if operation_of(node) is TO_TYPE:
            node.replace_all_uses_with(node.args[0])


def _proxy(value: Any, tracer: fx.proxy.GraphAppendingTracer) -> Any:
    return fx.Proxy(value, tracer) if isinstance(value, fx.Node) else value


# ---- attention ----------------------------------------------------------------------------------


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """-inf where a query must not see a key, one behind it, else 0: ``(queries, keys)``."""
    return torch.full((queries, keys), -math.inf, device=device).triu(1)


def _is_known_attention(node: fx.Node, given: dict[str, Any]) -> bool:
    mask, rate = given["attn_mask"], given["dropout_p"]
    follows_mode = isinstance(rate, fx.Node) and rate.target is rate_in_training
    return (rate == 0 or follows_mode) and (
        mask is None or is_constant(mask) or _is_boolean_constant(mask)
    )


def _is_boolean_constant(mask: fx.Node) -> bool:
    known = mask.meta.get("type")
    return isinstance(known, TensorType) and known.dtype is torch.bool and is_scalar(mask)


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any,
    dropout_p: Any,
    is_causal: bool,
    scale: Any,
    enable_gqa: bool,
) -> Any:
    """Return the result, in the operations that the documentation of the function names."""
    if enable_gqa:
        shares = query.size(-3) // key.size(-3)
        key, value = key.repeat_interleave(shares, -3), value.repeat_interleave(shares, -3)
    scores = torch.matmul(query, key.transpose(-2, -1))
    scores = scores * (query.size(-1) ** -0.5 if scale is None else scale)
    if is_causal:
        sizes = query.size(-2), key.size(-2), query.device
        attn_mask = query.tracer.create_proxy("call_function", causal_mask, sizes, {})
        attn_mask.node.meta["type"] = TensorType((), torch.float32)
    if attn_mask is not None:
        hides = isinstance(attn_mask, fx.Proxy) and _is_boolean_constant(attn_mask.node)
        scores = scores + (_added(attn_mask, 0.0, -math.inf) if hides else attn_mask)
    weights = torch.softmax(scores, -1)
    if isinstance(dropout_p, fx.Proxy):
        module: Any
        rate: Any
        module, rate = dropout_p.node.args
        owner = fx.Proxy(module, query.tracer)
        in_training = query.tracer.create_proxy("call_function", is_training, (owner,), {})
        weights = F.dropout(weights, rate, in_training)
    return torch.matmul(weights, value)


# ---- masks --------------------------------------------------------------------------------------


def _hides(node: fx.Node, value: Any, mask: Any) -> bool:
    """Return True if a softmax alone reads a call that hides what a constant mask says."""
    is_hidden = isinstance(value, int | float) and value <= HIDDEN
    return is_hidden and is_scalar(mask) and axis_of_softmax(node) is not None


def _fill(input: Any, mask: Any, value: float) -> Any:
    return input + _added(mask, value, 0.0)


def _choose(condition: Any, input: Any, other: float) -> Any:
    return input + _added(condition, 0.0, other)


def _added(mask: Any, where_true: float, where_false: float) -> Any:
    """Constant of floats, made of one of booleans."""
    added = torch.where(mask, where_true, where_false)
    assert isinstance(added, fx.Proxy)
    added.node.meta["type"] = TensorType((), torch.float32)
    return added


# ---- sums ---------------------------------------------------------------------------------------


def _add_product(input: Any, tensor1: Any, tensor2: Any, value: Any) -> Any:
    return input + _times(tensor1 * tensor2, value)


def _add_quotient(input: Any, tensor1: Any, tensor2: Any, value: Any) -> Any:
    return input + _times(tensor1 / tensor2, value)


def _times(product: Any, value: Any) -> Any:
    return product if isinstance(value, int | float) and value == 1 else product * value


# ---- writes into a part -------------------------------------------------------------------------


def _is_known_part(node: fx.Node, given: dict[str, Any]) -> bool:
    given = {"start": None, "end": None, "step": 1, "index": 0, **given}
    numbers = [given[name] for name in ("dim", "start", "end", "step", "index")]
    if not all(n is None or isinstance(n, int) for n in numbers) or given["step"] != 1:
        return False
    start, end = _ends(given["input"], given["dim"], given["start"], given["end"])
    return start == 0 or end is None or (start < end and (start < 0) is (end < 0))


def _ends(written: fx.Node, dim: int, start: int | None, end: int | None) -> tuple[int, Any]:
    """Start and end of a part; 0 and None at the ends of the axis, if its size is known."""
    known = written.meta.get("type")
    if isinstance(known, TensorType) and dim % len(known.shape):  # a batch has any size
        size = known.shape[dim]
        start, end, _ = slice(start, end).indices(size)
        return start, end if end < size else None
    return start or 0, None if end == _LAST else end


def _write_part(input: Any, src: Any, dim: int, start: Any, end: Any, step: int) -> Any:
    start, end = _ends(input.node, dim, start, end)
    rest = (slice(None),) * (dim if dim >= 0 else -dim - 1)
    before, after = (
        (*rest, part) if dim >= 0 else (..., part, *rest)
        for part in (slice(None, start), slice(end, None))
    )
    parts = [input[before]] if start else []
    parts += [src] if end is None else [src, input[after]]
    return torch.cat(parts, dim) if len(parts) > 1 else src


def _write_one(input: Any, src: Any, dim: int, index: int) -> Any:
    end = index + 1 if index != -1 else None
    return _write_part(input, src.unsqueeze(dim), dim, index, end, 1)


# ---- all of them --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Opening:
    """A way to write a call in other operations.

    Attributes:
        needs: The operation among those without which nothing is gained.
        open: Called with the arguments by name, as proxies; gives the result.
        can_open: Called with the node and its arguments.
        condition: Why a call is not opened.
    """

    needs: Operation
    open: Callable[..., Any]
    can_open: Callable[[fx.Node, dict[str, Any]], bool] = lambda node, given: True
    condition: str = ""


_KNOWN_MASKS = "its mask depends on the input, or it drops weights in evaluation"
_KNOWN_PARTS = "it writes into a part that is not known, or into every n-th place"
_OPENINGS = {
    ATTENTION.name: _Opening(SOFTMAX, _attention, _is_known_attention, _KNOWN_MASKS),
    MASKED_FILL.name: _Opening(
        SOFTMAX, _fill, lambda node, given: _hides(node, given["value"], given["mask"]), HIDING
    ),
    WHERE.name: _Opening(
        SOFTMAX,
        _choose,
        lambda node, given: _hides(node, given["other"], given["condition"]),
        HIDING,
    ),
    ADDCMUL.name: _Opening(ADD, _add_product),
    ADDCDIV.name: _Opening(ADD, _add_quotient),
    SLICE_SCATTER.name: _Opening(CAT, _write_part, _is_known_part, _KNOWN_PARTS),
    SELECT_SCATTER.name: _Opening(CAT, _write_one, _is_known_part, _KNOWN_PARTS),
}
