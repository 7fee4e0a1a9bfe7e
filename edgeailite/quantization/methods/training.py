"""Options of quantization-aware training beyond the straight-through estimator."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from edgeailite.quantization.arithmetic.spec import QConfig, QuantSpec
    from edgeailite.quantization.prepare.policy import Policy

LearnedRanges = Literal["none", "activations", "weights", "all"]


@dataclass(frozen=True)
class TrainingMethods:
    """Options of every wrapper that trains, as its argument ``methods``.

    Args:
        learned_ranges: Ranges that gradients move, instead of statistics: thresholds of
            power-of-two grids, scales of free ones. Activations begin with the statistics of the
            first ten batches, weights with the range of least squared error.
        damping: Strength that draws weights to their grid points at the end of the training. It
            grows from 0, as half a cosine over the epochs. 0: none.
        distillation: Weight of the distillation loss, 0 to 1; the rest is the weight of your loss.
            Costs a float forward pass per batch, and needs class scores.
        temperature: Temperature of the distillation.
        freeze_oscillations: Weights that jump back and forth between two grid points more often
            than this, per iteration, are frozen at the one where they are most of the time. It
            is the limit of the last epoch and falls to it, as damping grows. 0: none is frozen.

    Raises:
        ValueError: A field is outside of what it allows.

    Example:
        >>> methods = TrainingMethods(learned_ranges="all", distillation=0.9)
        >>> model = QATFxModule(model, total_epochs=10, methods=methods)
    """

    learned_ranges: LearnedRanges = "none"
    damping: float = 0.0
    distillation: float = 0.0
    temperature: float = 4.0
    freeze_oscillations: float = 0.0

    def __post_init__(self) -> None:
        if self.learned_ranges not in get_args(LearnedRanges):
            allowed = ", ".join(map(repr, get_args(LearnedRanges)))
            raise ValueError(f"learned_ranges is {self.learned_ranges!r}; allowed: {allowed}.")
        if not 0.0 <= self.damping < math.inf:
            raise ValueError(f"damping is {self.damping!r}; allowed: 0 (none) or more.")
        if not 0.0 <= self.freeze_oscillations < 1.0:
            raise ValueError(
                f"freeze_oscillations is {self.freeze_oscillations!r}; allowed: 0 (none is frozen) "
                "up to 1, not 1 itself. Few bits: 0.01."
            )
        if not 0.0 <= self.distillation <= 1.0:
            raise ValueError(f"distillation is {self.distillation!r}; allowed: 0 (none) to 1.")
        if not 0.0 < self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature!r}; it must be positive.")

    def apply_to(self, policy: Policy) -> Policy:
        """Return the policy with learned ranges, except fixed ones."""
        if self.learned_ranges == "none":
            return policy
        return replace(
            policy,
            qconfig=self._with_learned(policy.qconfig),
            by_path={key: self._with_learned(value) for key, value in policy.by_path.items()},
            by_pattern={key: self._with_learned(value) for key, value in policy.by_pattern.items()},
            by_type={key: self._with_learned(value) for key, value in policy.by_type.items()},
        )

    def _with_learned(self, qconfig: QConfig | None) -> QConfig | None:
        if qconfig is None:
            return None
        weight, activation = qconfig.weight, qconfig.activation
        if self.learned_ranges in ("weights", "all"):
            weight = _learned(weight)
        if self.learned_ranges in ("activations", "all"):
            activation = _learned(activation)
        return replace(qconfig, weight=weight, activation=activation)


def _learned(spec: QuantSpec | None) -> QuantSpec | None:
    return spec if spec is None or spec.fixed_range is not None else replace(spec, learned=True)
