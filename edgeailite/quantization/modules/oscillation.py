"""Oscillating weights: they jump back and forth between two grid points until they are frozen.

Reference: Nagel et al. 2022, https://arxiv.org/abs/2203.11086, section 4.2 and algorithm 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Part of an exponential average that one iteration makes up.
RATE = 0.01
# Frequency of a frozen weight; of others it is at most 1.
_FROZEN = 2.0


class Oscillations:
    """Jumps of one layer's weights between grid points; those that jump too often are frozen.

    In each iteration, with the weights' integers `q` and the directions `d` of their last jumps::

        f = f + RATE (o - f)    o = 1 where q jumps against d, else 0
        m = m + RATE (q - m)

    A weight whose frequency `f` exceeds the threshold stays at ``round(m)`` from then on. It is
    plain arithmetic on the weights: every process of a distributed training finds the same.

    Attributes:
        state: `q`, `d`, `f` and `m`, float32, shape ``(4, *weight.shape)``; None before the first
            iteration.
    """

    def __init__(self) -> None:
        self.state: Tensor | None = None

    @torch.no_grad()
    def track(self, integers: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
        """Follow one iteration.

        Args:
            integers: Weights on their grid, float32 whole numbers.
            threshold: Frequency, 0 to 1, above which weights are frozen.

        Returns:
            Boolean mask of the frozen weights, and the integers they stay at; shape of `integers`.
        """
        if self.state is None or self.state.device != integers.device:
            self.state = self._start(integers)
        before, direction, frequency, mean = self.state.unbind()
        frozen = frequency > 1.0
        integers = torch.where(frozen, mean.round(), integers)
        jump = torch.sign(integers - before)
        frequency.lerp_((jump * direction < 0).to(frequency.dtype), RATE)
        frozen |= frequency > threshold
        frequency.masked_fill_(frozen, _FROZEN)
        mean.lerp_(integers, RATE)
        direction.copy_(torch.where(jump == 0, direction, jump))
        before.copy_(integers)
        return frozen, mean.round()

    def _start(self, integers: Tensor) -> Tensor:
        if self.state is not None:
            return self.state.to(integers.device)
        none = torch.zeros_like(integers)
        return torch.stack([integers, none, none, integers])
