"""Normalizations that no layer folds: each operation rounds alike in all libraries."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgeailite.quantization.arithmetic.fold import batch_norm_gain
from edgeailite.quantization.graph.operations import BATCH_NORM_MODULES
from edgeailite.quantization.graph.twins import make_twin, twin_types


def gain_and_offset(batch_norm: nn.Module) -> tuple[Tensor, Tensor]:
    """``f`` and ``beta - mean * f`` of a batch norm with running statistics.

    See :func:`~edgeailite.quantization.arithmetic.fold.batch_norm_gain`.
    """
    assert isinstance(batch_norm, _BatchNorm)
    mean, var = batch_norm.running_mean, batch_norm.running_var
    assert mean is not None
    assert var is not None
    return batch_norm_gain(mean, var, batch_norm.eps, batch_norm.weight, batch_norm.bias)


class StandaloneBatchNorm(nn.Module):
    """Mixin over torch's batch norms for one that no layer folds: ``x * f + offset`` in evaluation.

    Two roundings that are the same everywhere; libraries evaluate batch norm in different orders.
    """

    @classmethod
    def from_float(cls, batch_norm: nn.Module) -> StandaloneBatchNorm:
        """Make the twin of one of torch's batch norms."""
        return make_twin(batch_norm, STANDALONE_BATCH_NORMS[type(batch_norm)])

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(N, C, ...)``, as the batch norm."""
        if self.training:
            return super().forward(x)
        return channel_affine(x, *gain_and_offset(self))


class StandaloneLayerNorm(nn.LayerNorm):
    """Layer norm whose operations round the same everywhere, for inputs on a power-of-two grid.

    ``(x - m) / sqrt(sum x^2 / n - m^2 + eps) * gamma + beta``: on such a grid both sums are exact
    in float32, in any order, up to ``n * 127^2 < 2^24``; what follows are single operations that
    IEEE 754 rounds correctly. Libraries' fused kernels differ from each other in the last bit,
    and so, now and then, by one integer of the next grid.

    Reference: Ba et al. 2016, https://arxiv.org/abs/1607.06450, eq. 4.
    """

    @classmethod
    def from_float(cls, layer_norm: nn.LayerNorm) -> StandaloneLayerNorm:
        """Make the twin of a layer norm."""
        return make_twin(layer_norm, cls)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize over the last dimensions, as the layer norm."""
        if self.training:
            return super().forward(x)
        dims = tuple(range(-len(self.normalized_shape), 0))
        count = math.prod(self.normalized_shape)
        mean = x.sum(dims, keepdim=True) / count
        mean_square = (x * x).sum(dims, keepdim=True) / count
        y = (x - mean) / torch.sqrt((mean_square - mean * mean).clamp_min(0.0) + self.eps)
        y = y if self.weight is None else y * self.weight
        return y if self.bias is None else y + self.bias


def channel_affine(x: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    """``x * gain + offset`` along axis 1; `gain` and `offset` of shape ``(C,)``."""
    x, tail = plain_strides(x), [1] * (x.dim() - 2)
    return x * gain.reshape(-1, *tail) + offset.reshape(-1, *tail)


def plain_strides(x: Tensor) -> Tensor:
    """Give a tensor the strides of batch norm's result; costs nothing.

    Where an axis has size 1 other strides mean the same, but a convolution behind would then choose
    channels-last for its result, and a ``view`` that works in the float model would not.
    """
    if not x.is_contiguous() or torch.compiler.is_exporting():
        return x
    return x.flatten().view(x.shape)


STANDALONE_BATCH_NORMS = twin_types(StandaloneBatchNorm, BATCH_NORM_MODULES, "Standalone")
