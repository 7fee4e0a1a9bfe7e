"""Effects of post-training methods: plain data, and a table of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class MethodGain:
    """Effect of one method, or of several that were tried together.

    Attributes:
        method: Its name, or names with ``+`` between them.
        num_changed: Number of quantizers or layers that it changed.
        sqnr: SQNR of the network's output behind it against the float model, in dB, on the
            images that were held out.
        seconds: Time that it took.
        kept: False: another way was better on those images, and what this one did was undone.
    """

    method: str
    num_changed: int
    sqnr: float
    seconds: float
    kept: bool = True


def render_gains(gains: Sequence[MethodGain]) -> str:
    """Render the effect of each method as a table."""
    width = max([len(gain.method) for gain in gains] + [20])
    lines = [f"{'method':{width}} {'changed':>8} {'SQNR dB':>8} {'seconds':>8}"]
    for g in gains:
        row = f"{g.method:{width}} {g.num_changed:8} {g.sqnr:8.2f} {g.seconds:8.1f}"
        lines.append(row if g.kept else f"{row}  rejected")
    return "\n".join(lines)
