"""A layer as a matrix product: what each output value is the sum of, at some positions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeailite.quantization.graph.window_sums import of_axes

if TYPE_CHECKING:
    from edgeailite.quantization.modules.layer_calls import LayerCall


class LayerRows(NamedTuple):
    """Inputs and outputs of a layer at the same positions.

    Attributes:
        inputs: What each weight of a group meets, shape ``(G, n, d)``.
        outputs: Outputs of the group, shape ``(G, n, C_out / G)``.
    """

    inputs: Tensor
    outputs: Tensor


def rows_of_batches(
    call: LayerCall, inputs: list[Tensor], outputs: list[Tensor], count: int, seed: int = 0
) -> LayerRows:
    """Take about `count` rows of a layer, drawn from all batches; see :func:`layer_rows`."""
    generator = torch.Generator().manual_seed(seed)
    per_batch = max(count // len(inputs), 1)
    parts = [
        layer_rows(call, x, y, per_batch, generator) for x, y in zip(inputs, outputs, strict=True)
    ]
    return LayerRows(*(torch.cat(tensors, 1) for tensors in zip(*parts, strict=True)))


def layer_rows(
    call: LayerCall, x: Tensor, y: Tensor, count: int, generator: torch.Generator
) -> LayerRows:
    """Take about `count` rows of a linear layer or a convolution (no transposed one).

    Args:
        call: Call of the layer, which may be a function.
        x: Its input.
        y: Its output for `x`, or what it should be.
        count: Rows of each group; fewer where there are fewer positions.
        generator: Draws the positions, the same in all images of the batch.
    """
    layer, kernel = call.layer, call.weight.shape[2:]
    if not kernel:
        rows = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        chosen = torch.randperm(len(rows[0]), generator=generator)[:count]
        return LayerRows(*(v[chosen.to(v.device)][None] for v in rows))
    if x.dim() == len(kernel) + 1:  # a single image
        x, y = x[None], y[None]
    strides, dilations = (of_axes(v, len(kernel)) for v in (layer.stride, layer.dilation))
    mode = getattr(layer, "padding_mode", "zeros")
    pads = [p for pair in reversed(_pads(layer.padding, kernel, dilations)) for p in pair]
    x = F.pad(x, pads, mode="constant" if mode == "zeros" else mode)
    num_positions = math.prod(y.shape[2:])
    positions = torch.randperm(num_positions, generator=generator)
    positions = positions[: max(count // len(y), 1)].to(x.device)
    windows = zip(kernel, strides, dilations, strict=True)
    taps = _taps(windows, positions, x.shape[2:], y.shape[2:])
    groups = layer.num_groups
    met = x.flatten(2)[:, :, taps].unflatten(1, (groups, -1))  # N, G, C, n, K
    met = met.permute(1, 0, 3, 2, 4).flatten(3).flatten(1, 2)
    made = y.flatten(2)[:, :, positions].unflatten(1, (groups, -1))  # N, G, O, n
    return LayerRows(met, made.permute(1, 0, 3, 2).flatten(1, 2))


def _pads(padding: Any, kernel: torch.Size, dilations: Sequence[int]) -> list[tuple[int, int]]:
    """Zeros before and behind each axis, as torch's convolutions add them."""
    if padding == "same":
        added = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
        return [(n // 2, n - n // 2) for n in added]
    return [(p, p) for p in of_axes(0 if padding == "valid" else padding, len(kernel))]


def _taps(
    windows: Iterable[tuple[int, int, int]],
    positions: Tensor,
    size: torch.Size,
    output_size: torch.Size,
) -> Tensor:
    """Places in the flattened padded input that the kernel covers, shape ``(n, kernel)``.

    Args:
        windows: Kernel, stride and dilation of each axis.
        positions: Places in the flattened output, shape ``(n,)``.
        size: Of the padded input.
        output_size: Of the output.
    """
    found = torch.zeros(len(positions), 1, dtype=torch.long, device=positions.device)
    for axis, (kernel, stride, dilation) in enumerate(windows):
        place = positions // math.prod(output_size[axis + 1 :]) % output_size[axis]
        steps = torch.arange(kernel, device=positions.device) * dilation
        along = (place[:, None] * stride + steps)[:, None]
        found = (found[:, :, None] * size[axis] + along).flatten(1)
    return found
