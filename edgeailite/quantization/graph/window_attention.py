"""Attention in shifted windows, as torchvision's Swin has it, in operations that the engine knows.

Its function branches on the image's size, which tracing does not know, so fx calls it as a whole.
Here sizes are computed as the graph runs: a shift that a small image does not need is one by zero.

Reference: Liu et al. 2021, https://arxiv.org/abs/2103.14030, section 3.2.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

MASKED = -100.0


def is_window_attention(module: nn.Module) -> bool:
    """Return True for torchvision's module without the cosine attention of its second version."""
    library = type(module).__module__.partition(".")[0]
    return library == "torchvision" and type(module).__name__ == "ShiftedWindowAttention"


def window_padding(size: int, window: int) -> int:
    """Padding up to the next multiple of `window`."""
    return -size % window


def window_shift(size: int, window: int, shift: int) -> int:
    """`shift`, or none where one window covers the whole side."""
    return 0 if window >= size else shift


def mask_windows(
    scores: Tensor, rows: int, columns: int, window: list[int], shift: list[int]
) -> Tensor:
    """Add -100 between pixels that are neighbours only because of the cyclic shift.

    Args:
        scores: ``(N * windows, heads, L, L)``, ``L`` pixels of a window.
        rows: Height, a multiple of ``window[0]``.
        columns: Width, a multiple of ``window[1]``.
        window: Height and width of a window.
        shift: Cyclic shift, vertical and horizontal; zeros: nothing is masked.

    Returns:
        Shape of `scores`.
    """
    if not any(shift):
        return scores
    across = _regions(columns, window[1], shift[1])
    region = _regions(rows, window[0], shift[0])[:, None] * 3 + across
    windows = region.reshape(rows // window[0], window[0], columns // window[1], window[1])
    windows = windows.permute(0, 2, 1, 3).reshape(-1, 1, window[0] * window[1])
    apart = windows != windows.transpose(1, 2)
    mask = torch.zeros(apart.shape).masked_fill(apart, MASKED).to(scores.device)
    grouped = scores.unflatten(0, (-1, mask.shape[0])) + mask[:, None]
    return grouped.flatten(0, 1)


def _regions(size: int, window: int, shift: int) -> Tensor:
    """Stripe that each pixel of a shifted side is from, of one or three; shape ``(size,)``."""
    position = torch.arange(size)
    if shift == 0:
        return torch.zeros_like(position)
    return (position >= size - window).long() + (position >= size - shift).long()


fx.wrap("window_padding")
fx.wrap("window_shift")
fx.wrap("mask_windows")


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
    parts = module.qkv(x).reshape(-1, high * wide, 3, heads, head_width).permute(2, 0, 3, 1, 4)
    q, k, v = parts[0], parts[1], parts[2]
    scores = torch.matmul(q, k.transpose(-2, -1)) * head_width**-0.5
    scores = scores + module.get_relative_position_bias()
    weights = torch.softmax(mask_windows(scores, rows, columns, [high, wide], shift), dim=-1)
    if module.attention_dropout:
        weights = F.dropout(weights, module.attention_dropout, training=module.training)
    return torch.matmul(weights, v).transpose(1, 2).reshape(-1, high * wide, heads * head_width)
