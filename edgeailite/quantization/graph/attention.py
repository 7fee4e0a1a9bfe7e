"""Attention in operations that the engine knows, so that its weights and products are quantized.

``nn.MultiheadAttention`` branches on its tensors and cannot be traced; its arithmetic is plain:
three projections, two matrix products, one softmax. ``F.scaled_dot_product_attention`` is one call
of the last three.

Reference: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.2.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn


def is_traceable_attention(
    module: nn.Module,
    query: Any,
    key: Any,
    value: Any,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> bool:
    """Return True for self-attention without masks: :func:`multihead_attention` computes it."""
    assert isinstance(module, nn.MultiheadAttention)
    plain = module.bias_k is None and not module.add_zero_attn and module._qkv_same_embed_dim
    unmasked = key_padding_mask is None and attn_mask is None and not is_causal
    return plain and unmasked and query is key and key is value


def multihead_attention(
    module: nn.MultiheadAttention,
    query: Any,
    key: Any,
    value: Any,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Any, Any]:
    """Compute ``module(query, key, value, ...)`` in traceable operations.

    Args:
        module: Its parameters are used where they are.
        query: ``(N, L, E)``, or ``(L, N, E)`` without `batch_first`.
        key: The same as `query`.
        value: The same as `query`.
        key_padding_mask: None.
        need_weights: Return the attention weights, ``(N, L, L)``, as well.
        attn_mask: None.
        average_attn_weights: Average them over the heads; else ``(N, heads, L, L)``.
        is_causal: False.
    """
    x = query if module.batch_first else query.transpose(0, 1)
    heads, width = module.num_heads, module.head_dim
    parts = F.linear(x, module.in_proj_weight, module.in_proj_bias).chunk(3, dim=-1)
    q, k, v = (parts[i].unflatten(-1, (heads, width)).transpose(1, 2) for i in range(3))
    scores = torch.matmul(q, k.transpose(-2, -1)) * (1 / math.sqrt(width))
    weights = torch.softmax(scores, dim=-1)
    if module.dropout:
        weights = F.dropout(weights, module.dropout, training=module.training)
    mixed = torch.matmul(weights, v).transpose(1, 2).flatten(2)
    result = F.linear(mixed, module.out_proj.weight, module.out_proj.bias)
    if not module.batch_first:
        result = result.transpose(0, 1)
    if not need_weights:
        return result, None
    return result, weights.mean(dim=1) if average_attn_weights else weights


_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


def open_attention(graph: fx.Graph) -> None:
    """Replace calls of ``F.scaled_dot_product_attention`` without masks by products and a softmax.

    Args:
        graph: Of torch's public functions; changed.
    """
    tracer = fx.proxy.GraphAppendingTracer(graph)
    for node in graph.find_nodes(op="call_function", target=F.scaled_dot_product_attention):
        given = {**dict(zip(_ARGUMENTS, node.args, strict=False)), **node.kwargs}
        query, key, value = (fx.Proxy(given.pop(name), tracer) for name in _ARGUMENTS[:3])
        dropout, scale = given.pop("dropout_p", 0.0), given.pop("scale", None)
        if any(option is not None and option is not False for option in given.values()):
            continue  # a mask, or keys that several heads share
        before = node.prev
        with graph.inserting_before(node):
            mixed = scaled_dot_product(query, key, value, dropout, scale)
        while before.next is not node:
            before = before.next
            before.meta = {name: v for name, v in node.meta.items() if name in ("owner", "grad")}
        node.replace_all_uses_with(mixed.node)
        graph.erase_node(node)


def scaled_dot_product(
    query: Any, key: Any, value: Any, dropout: float, scale: float | None
) -> Any:
    """Compute ``softmax(q k^T scale) v`` in traceable operations.

    Args:
        query: ``(..., L, E)``.
        key: ``(..., S, E)``.
        value: ``(..., S, V)``.
        dropout: Probability of an attention weight to be 0.
        scale: None: ``1 / sqrt(E)``.
    """
    scale = query.size(-1) ** -0.5 if scale is None else scale
    weights = torch.softmax(torch.matmul(query, key.transpose(-2, -1)) * scale, dim=-1)
    weights = F.dropout(weights, dropout, training=dropout > 0.0)
    return torch.matmul(weights, value)
