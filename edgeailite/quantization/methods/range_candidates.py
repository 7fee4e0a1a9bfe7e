"""Coarse-to-fine search of a range, for activations and for weights.

The error to minimize is that of the output of the layers that read a value. It is
``E[(W (Q(x) - x))^2] ~ sum_c |W_c|^2 E[(Q(x_c) - x_c)^2]`` for an activation, and
``E[((Q(W) - W) x)^2] ~ sum_k (Q(w_k) - w_k)^2 E[x_k^2]`` for a weight. Errors of different values
are taken as independent.

Reference: Nagel et al. 2021, https://arxiv.org/abs/2106.08295, section 3.1 (range setting by mean
squared error).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

# Parts of the full range that are tried: powers of two, then finer ones around the best.
COARSE_PARTS = tuple(2.0**-i for i in range(10))
FINE_PARTS = tuple(0.04 * i for i in range(14, 50))


def best_range(
    full: Tensor,
    best_of: Callable[[list[Tensor]], Tensor],
    within: Callable[[Tensor], Tensor],
    power_of_two: bool,
) -> Tensor:
    """Search the best range among parts of the full one.

    Args:
        full: Range that covers all values, any shape.
        best_of: Chooses among ranges of this shape.
        within: Limits a range to the full one.
        power_of_two: The grid rounds ranges to powers of two, so that finer parts change nothing.

    Returns:
        The best range; shape of `full`.
    """
    best = best_of([full * part for part in COARSE_PARTS])
    if power_of_two:
        return best
    return best_of([within(best * part) for part in FINE_PARTS])
