"""Choice of the bits of each layer for a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgeailite._extras import needs_extra
from edgeailite.quantization.methods.mixed_precision.result import LayerSensitivity

Cost = Callable[[LayerSensitivity, int], int]


def choose_bit_widths(
    sensitivities: Sequence[LayerSensitivity],
    *,
    max_bytes: int | None = None,
    max_mac_bits: int | None = None,
) -> dict[str, int]:
    """Choose the bits of each layer with the least summed error that fit a budget.

    An integer program: one choice per layer, the sums of bytes and of MAC-bits within the budgets.

    Args:
        sensitivities: From :func:`layer_sensitivity`.
        max_bytes: Limit of the bytes of all weights, packed; None: any size.
        max_mac_bits: Limit of the sum of all multiply-accumulates times the bits of their weights,
            for one input; None: any.

    Returns:
        Bits by path.

    Raises:
        ValueError: Not even the narrowest weights fit, one budget or both together.
    """
    with needs_extra("search", "The search for bit widths"):
        from scipy.optimize import Bounds, LinearConstraint, milp

    choices = [(layer, bits) for layer in sensitivities for bits in layer.errors]
    one_each = np.array([[layer is other for layer, _ in choices] for other in sensitivities])
    constraints = [LinearConstraint(one_each.astype(float), lb=1, ub=1)]
    budgets: dict[str, tuple[int | None, Cost]] = {
        "max_bytes": (max_bytes, LayerSensitivity.num_bytes),
        "max_mac_bits": (max_mac_bits, LayerSensitivity.mac_bits),
    }
    for name, (budget, cost) in budgets.items():
        if budget is not None:
            _check_budget(name, budget, cost, sensitivities)
            # In parts of the budget: a solver's tolerance is for numbers near 1.
            costs = np.array([cost(layer, bits) / max(budget, 1) for layer, bits in choices])
            constraints.append(LinearConstraint(costs[None, :], ub=1.0 + 1e-12))
    errors = np.array([layer.errors[bits] for layer, bits in choices])
    result = milp(
        # In parts of the smallest one: the solver stops at an absolute gap of 1e-6.
        errors / max(errors[errors > 0].min(initial=np.inf), 1e-30),
        integrality=np.ones(len(choices)),
        bounds=Bounds(0, 1),
        constraints=constraints,
    )
    assert result.success
    chosen = result.x > 0.5
    return {layer.path: bits for (layer, bits), yes in zip(choices, chosen, strict=True) if yes}


def _check_budget(
    name: str, budget: int, cost: Cost, sensitivities: Sequence[LayerSensitivity]
) -> None:
    smallest = sum(min(cost(layer, bits) for bits in layer.errors) for layer in sensitivities)
    if smallest > budget:
        raise ValueError(
            f"{name} is {budget}; the smallest these {len(sensitivities)} layers can take is "
            f"{smallest}. Allow more, or make the network smaller."
        )
