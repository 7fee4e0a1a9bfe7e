"""Torchvision's Swin in operations that the engine knows: attention in shifted windows, merging.

Its function branches on the image's size, which tracing does not know, so fx calls it as a whole.
Here sizes are computed as the graph runs: a shift that a small image does not need is one by zero.

Reference: Liu et al. 2021, https://arxiv.org/abs/2103.14030, section 3.2; the second version: Liu
et al. 2022, https://arxiv.org/abs/2111.09883, section 3.3.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

MASKED = -100.0


def is_window_attention(module: nn.Module) -> bool:
    """Return True for torchvision's modules, of both versions."""
    return _is_torchvisions(module, "ShiftedWindowAttention", "ShiftedWindowAttentionV2")


def is_patch_merging(module: nn.Module) -> bool:
    """Return True for torchvision's modules, of both versions."""
    return _is_torchvisions(module, "PatchMerging", "PatchMergingV2")


def _is_torchvisions(module: nn.Module, *names: str) -> bool:
    library = type(module).__module__.partition(".")[0]
    return library == "torchvision" and type(module).__name__ in names


def window_padding(size: int, window: int) -> int:
    """Padding up to the next multiple of `window`."""
    return -size % window


def window_shift(size: int, window: int, shift: int) -> int:
    """`shift`, or none where one window covers the whole side."""
    return 0 if window >= size else shift


def window_mask(
    like: Tensor, rows: int, columns: int, window: list[int], shift: list[int]
) -> Tensor:
    """-100 between pixels that are neighbours only because of the cyclic shift, else 0.

    Args:
        like: Whose dtype and device the mask has.
        rows: Height, a multiple of ``window[0]``.
        columns: Width, a multiple of ``window[1]``.
        window: Height and width of a window.
        shift: Cyclic shift, vertical and horizontal; zeros: nothing is masked.

    Returns:
        ``(windows, 1, L, L)``, ``L`` pixels of a window.
    """
    across = _regions(columns, window[1], shift[1])
    region = _regions(rows, window[0], shift[0])[:, None] * 3 + across
    windows = region.reshape(rows // window[0], window[0], columns // window[1], window[1])
    windows = windows.permute(0, 2, 1, 3).reshape(-1, 1, 1, window[0] * window[1])
    apart = windows != windows.transpose(2, 3)
    return like.new_zeros(apart.shape).masked_fill(apart.to(like.device), MASKED)


def _regions(size: int, window: int, shift: int) -> Tensor:
    """Stripe that each pixel of a shifted side is from, of one or three; shape ``(size,)``."""
    position = torch.arange(size)
    if shift == 0:
        return torch.zeros_like(position)
    return (position >= size - window).long() + (position >= size - shift).long()


fx.wrap("window_padding")
fx.wrap("window_shift")
fx.wrap("window_mask")


def window_attention(module: Any, x: Any) -> Any:
    """Compute ``module(x)`` in traceable operations.

    Args:
        module: One that :func:`is_window_attention` accepts; torchvision ships no types. Its
            parameters are used where they are.
        x: ``(N, H, W, C)``.

    Returns:
        ``(N, H, W, C)``.
    """
    (high, wide), channels = module.window_size, module.qkv.in_features
    height, width = x.size(1), x.size(2)
    below, right = window_padding(height, high), window_padding(width, wide)
    rows, columns = height + below, width + right
    shift = [
        window_shift(rows, high, module.shift_size[0]),
        window_shift(columns, wide, module.shift_size[1]),
    ]
    x = torch.roll(F.pad(x, (0, 0, 0, right, 0, below)), (-shift[0], -shift[1]), (1, 2))
    x = x.view(-1, rows // high, high, columns // wide, wide, channels)
    x = x.permute(0, 1, 3, 2, 4, 5).reshape(-1, high * wide, channels)
    x = module.proj(_attend(module, x, rows, columns, shift))
    if module.dropout:
        x = F.dropout(x, module.dropout, training=module.training)
    x = x.view(-1, rows // high, columns // wide, high, wide, channels)
    x = x.permute(0, 1, 3, 2, 4, 5).reshape(-1, rows, columns, channels)
    return torch.roll(x, (shift[0], shift[1]), (1, 2))[:, :height, :width, :]


def _attend(module: Any, x: Any, rows: Any, columns: Any, shift: list[Any]) -> Any:
    """Self-attention of the pixels of each window: ``(N * windows, L, C)`` in and out."""
    heads, (high, wide) = module.num_heads, module.window_size
    head_width = module.qkv.in_features // heads
    parts = _projections(module, x).reshape(-1, high * wide, 3, heads, head_width)
    parts = parts.permute(2, 0, 3, 1, 4)
    q, k, v = parts[0], parts[1], parts[2]
    scores = _similarities(module, q, k, head_width) + module.get_relative_position_bias()
    if any(module.shift_size):
        mask = window_mask(module.proj.weight, rows, columns, [high, wide], shift)
        windows = (rows // high) * (columns // wide)
        weights = torch.softmax(scores.unflatten(0, (-1, windows)) + mask, dim=-1).flatten(0, 1)
    else:
        weights = torch.softmax(scores, dim=-1)
    if module.attention_dropout:
        weights = F.dropout(weights, module.attention_dropout, training=module.training)
    return torch.matmul(weights, v).transpose(1, 2).reshape(-1, high * wide, heads * head_width)


def _projections(module: Any, x: Any) -> Any:
    """Queries, keys and values; in the second version keys have no bias."""
    if not hasattr(module, "logit_scale") or module.qkv.bias is None:
        return module.qkv(x)
    count, bias = module.qkv.in_features, module.qkv.bias
    bias = torch.cat([bias[:count], torch.zeros_like(bias[:count]), bias[2 * count :]])
    return F.linear(x, module.qkv.weight, bias)


def _similarities(module: Any, q: Any, k: Any, head_width: int) -> Any:
    """Scaled products of queries and keys; in the second version scaled cosines."""
    if not hasattr(module, "logit_scale"):
        return torch.matmul(q, k.transpose(-2, -1)) * head_width**-0.5
    cosines = torch.matmul(F.normalize(q, dim=-1), F.normalize(k, dim=-1).transpose(-2, -1))
    return cosines * torch.clamp(module.logit_scale, max=math.log(100.0)).exp()


def patch_merging(module: Any, x: Any) -> Any:
    """Compute ``module(x)`` in traceable operations.

    Args:
        module: One that :func:`is_patch_merging` accepts.
        x: ``(N, H, W, C)``.

    Returns:
        ``(N, ceil(H / 2), ceil(W / 2), 2 * C)``.
    """
    x = F.pad(x, (0, 0, 0, window_padding(x.size(2), 2), 0, window_padding(x.size(1), 2)))
    x = torch.cat([x[:, row::2, column::2, :] for column in (0, 1) for row in (0, 1)], dim=-1)
    if type(module).__name__ == "PatchMergingV2":
        return module.norm(module.reduction(x))
    return module.reduction(module.norm(x))
