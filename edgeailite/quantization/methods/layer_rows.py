"""A layer as a matrix product: what each output value is the sum of, at some positions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

if TYPE_CHECKING:
    from edgeailite.quantization.modules.layer import QuantLayer


class LayerRows(NamedTuple):
    """Inputs and outputs of a layer at the same positions.

    Attributes:
        inputs: What each weight of a group meets, shape ``(G, n, d)``.
        outputs: Outputs of the group, shape ``(G, n, C_out / G)``.
    """

    inputs: Tensor
    outputs: Tensor


def rows_of_batches(
    layer: QuantLayer, inputs: list[Tensor], outputs: list[Tensor], count: int, seed: int = 0
) -> LayerRows:
    """Take about `count` rows of a layer, drawn from all batches; see :func:`layer_rows`."""
    generator = torch.Generator().manual_seed(seed)
    per_batch = max(count // len(inputs), 1)
    parts = [
        layer_rows(layer, x, y, per_batch, generator) for x, y in zip(inputs, outputs, strict=True)
    ]
    return LayerRows(*(torch.cat(tensors, 1) for tensors in zip(*parts, strict=True)))


def layer_rows(
    layer: QuantLayer, x: Tensor, y: Tensor, count: int, generator: torch.Generator
) -> LayerRows:
    """Take about `count` rows of a linear layer or a convolution (no transposed one).

    Args:
        layer: The layer.
        x: Its input.
        y: Its output for `x`, or what it should be.
        count: Rows of each group; fewer where there are fewer positions.
        generator: Draws the positions, the same in all images of the batch.
    """
    if isinstance(layer, nn.Linear):
        rows = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        chosen = torch.randperm(len(rows[0]), generator=generator)[:count]
        return LayerRows(*(v[chosen.to(v.device)][None] for v in rows))
    x, y = _with_images(layer, x), _with_images(layer, y)
    assert isinstance(layer, _ConvNd)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    num_positions = math.prod(y.shape[2:])
    positions = torch.randperm(num_positions, generator=generator)
    positions = positions[: max(count // len(y), 1)].to(x.device)
    taps = _taps(layer, positions, x.shape[2:], y.shape[2:])
    groups = layer.num_groups
    met = x.flatten(2)[:, :, taps].unflatten(1, (groups, -1))  # N, G, C, n, K
    met = met.permute(1, 0, 3, 2, 4).flatten(3).flatten(1, 2)
    made = y.flatten(2)[:, :, positions].unflatten(1, (groups, -1))  # N, G, O, n
    return LayerRows(met, made.permute(1, 0, 3, 2).flatten(1, 2))


def _with_images(layer: QuantLayer, x: Tensor) -> Tensor:
    """Give a single image its batch axis."""
    return x if x.dim() == len(layer.kernel_size) + 2 else x[None]


def _taps(
    layer: QuantLayer, positions: Tensor, size: torch.Size, output_size: torch.Size
) -> Tensor:
    """Places in the flattened padded input that the kernel covers, shape ``(n, kernel)``."""
    found = torch.zeros(len(positions), 1, dtype=torch.long, device=positions.device)
    for axis, (kernel, stride, dilation) in enumerate(
        zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
    ):
        place = positions // math.prod(output_size[axis + 1 :]) % output_size[axis]
        steps = torch.arange(kernel, device=positions.device) * dilation
        along = (place[:, None] * stride + steps)[:, None]
        found = (found[:, :, None] * size[axis] + along).flatten(1)
    return found
