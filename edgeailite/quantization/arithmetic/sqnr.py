"""Distance between outputs, each taken as one vector, in decibel."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


def flat_outputs(outputs: Iterable[Any]) -> Tensor:
    """Concatenate all tensors of a model's outputs, batch by batch; float64, shape ``(n,)``."""
    leaves = (leaf for output in outputs for leaf in tree_leaves(output))
    return torch.cat([v.detach().flatten().double() for v in leaves if isinstance(v, Tensor)])


def decibel(signal: float, noise: float) -> float:
    """``10 log10(signal / noise)``; infinite without noise."""
    return math.inf if noise == 0 else 10 * math.log10(max(signal, 1e-300) / noise)


def sqnr(signal: Tensor, noisy: Tensor) -> float:
    """Signal to noise in dB: ``10 log10(sum x^2 / sum (x - y)^2)``; infinite if equal."""
    return decibel(*signal_and_noise(signal, noisy))


def signal_and_noise(signal: Tensor, noisy: Tensor) -> tuple[float, float]:
    """``sum x^2`` and ``sum (x - y)^2``."""
    x = signal.double()
    return float(x.square().sum()), float((x - noisy.double()).square().sum())
