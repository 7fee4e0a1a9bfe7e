"""Effects of post-training methods: plain data, and a table of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class MethodGain:
    """Effect of one method.

    Attributes:
        method: Its name.
        num_changed: Number of quantizers or layers that it changed.
        sqnr: SQNR of the network's output behind it against the float model, in dB, on the data
            that it learned from.
        seconds: Time that it took.
    """

    method: str
    num_changed: int
    sqnr: float
    seconds: float


def render_gains(gains: Sequence[MethodGain]) -> str:
    """Render the effect of each method as a table."""
    lines = [f"{'method':20} {'changed':>8} {'SQNR dB':>8} {'seconds':>8}"]
    lines += [f"{g.method:20} {g.num_changed:8} {g.sqnr:8.2f} {g.seconds:8.1f}" for g in gains]
    return "\n".join(lines)
