"""Oscillating weights: they jump back and forth between two grid points until they are frozen.

Reference: Nagel et al. 2022, https://arxiv.org/abs/2203.11086, section 4.2 and algorithm 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Part of an exponential average that one iteration makes up.
RATE = 0.01


class Oscillations:
    """Jumps of one layer's weights between grid points; those that jump too often are frozen.

    In each iteration, with the weights' integers `q` and the directions `d` of their last jumps::

        f = f + RATE (o - f)    o = 1 where q jumps against d, else 0
        m = m + RATE (q - m)

    A weight whose frequency `f` exceeds the threshold stays at ``round(m)`` from the next iteration
    on. It is plain arithmetic on the weights: every process of a distributed training finds the
    same.

    Attributes:
        state: `q`, `d`, `f` (infinite: frozen) and `m`, float32, shape ``(4, *weight.shape)``; None
            before the first iteration.
    """

    def __init__(self) -> None:
        self.state: Tensor | None = None

    def forget(self) -> None:
        """Begin anew: the weights or their grid have become others."""
        self.state = None

    def frozen(self, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Mask of the frozen weights and the integers they stay at; None before any iteration.

        The state moves to the device, where the weights are.
        """
        if self.state is None:
            return None
        self.state = self.state.to(device)
        return self.state[2] == math.inf, self.state[3].round()

    @torch.no_grad()
    def follow(self, integers: Tensor, threshold: float) -> None:
        """Follow one iteration.

        Args:
            integers: Weights on their grid, float32 whole numbers.
            threshold: Frequency, above which weights are frozen; 1 or more: none is.
        """
        if self.state is None:
            none = torch.zeros_like(integers)
            self.state = torch.stack([integers, none, none, integers])
        before, direction, frequency, mean = self.state.unbind()
        jump = integers - before
        frequency.mul_(1.0 - RATE).add_(jump * direction < 0, alpha=RATE)
        frequency.masked_fill_(frequency > min(threshold, 1.0), math.inf)
        mean.lerp_(integers, RATE)
        torch.where(jump == 0, direction, jump, out=direction)
        before.copy_(integers)
