"""Learning-rate schedules with a linear warm-up, as closed forms of the step number.

A closed form has no state but the step, so a resumed run continues exactly, and a schedule can be
stepped once per epoch or once per iteration without changing its shape.
"""

import bisect
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["SCHEDULERS", "Schedule", "make_lr_scheduler"]

SCHEDULERS = ("cosine", "step", "multistep", "poly", "exponential")

_DEFAULT_GAMMA = {"step": 0.1, "multistep": 0.1, "exponential": 0.97}
_DEFAULT_POWER = 0.9


@dataclass(frozen=True)
class Schedule:
    """The factor of the base learning rate at each step.

    During warm-up the factor rises linearly, ``(t + 1) / (t_w + 1)``, and reaches 1 with the first
    step after it. With ``e`` the time in epochs, ``w`` the warm-up and ``T`` the end:

    * cosine: ``(1 + cos(pi * p)) / 2``, poly: ``(1 - p) ** power``, ``p = (e - w) / (T - w)``
    * step, multistep: ``gamma ** (number of milestones reached)``
    * exponential: ``gamma ** (e - w)``

    Attributes:
        name: One of ``SCHEDULERS``.
        epochs: Length of the training, in epochs.
        steps_per_epoch: Calls of ``step()`` in an epoch.
        warmup_epochs: Length of the warm-up, in epochs, fractions allowed.
        milestones: Epochs, counted from the start of training, at which step drops the rate.
        gamma: Factor of each drop (step), or per epoch (exponential).
        power: Exponent of poly.
    """

    name: str
    epochs: int
    steps_per_epoch: int
    warmup_epochs: float
    milestones: tuple[int, ...]
    gamma: float
    power: float

    def __call__(self, step: int) -> float:
        """The factor at `step`, counted from 0."""
        warmup_steps = round(self.warmup_epochs * self.steps_per_epoch)
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        epoch = step / self.steps_per_epoch
        if self.name in ("step", "multistep"):
            return self.gamma ** bisect.bisect_right(self.milestones, epoch)
        if self.name == "exponential":
            return self.gamma ** (epoch - self.warmup_epochs)
        length = self.epochs - self.warmup_epochs
        progress = min(max((epoch - self.warmup_epochs) / length, 0.0), 1.0)
        if self.name == "poly":
            return (1.0 - progress) ** self.power
        return 0.5 * (1.0 + math.cos(math.pi * progress))


def make_lr_scheduler(
    optimizer: Optimizer,
    name: str,
    epochs: int,
    *,
    steps_per_epoch: int = 1,
    warmup_epochs: float = 0,
    milestones: Sequence[int] = (),
    gamma: float | None = None,
    power: float | None = None,
) -> LambdaLR:
    """Build a learning-rate scheduler; see :class:`Schedule` for the formulas.

    Call its ``step()`` once per epoch, or, with `steps_per_epoch` set to the number of iterations
    in an epoch, once per iteration. Its state dict holds plain numbers only, and restoring it in a
    scheduler built the same way continues the schedule exactly.

    Args:
        optimizer: Its learning rates, one per parameter group, are the base that is scaled.
        name: One of ``SCHEDULERS``; multistep is another name of step.
        epochs: Length of the training, in epochs.
        steps_per_epoch: Calls of ``step()`` in an epoch.
        warmup_epochs: Length of the linear warm-up, in epochs, fractions allowed.
        milestones: Epochs at which step drops the rate, rising.
        gamma: Factor of each drop (step; 0.1 where None) or per epoch (exponential; 0.97).
        power: Exponent of poly; 0.9 where None.

    Returns:
        The scheduler, already at step 0.

    Raises:
        ValueError: An argument is out of its range, or step has no milestones.
    """
    _check(name, epochs, steps_per_epoch, warmup_epochs, milestones)
    _warn_without_effect(name, milestones, gamma, power)
    schedule = Schedule(
        name=name,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        warmup_epochs=warmup_epochs,
        milestones=tuple(milestones),
        gamma=_DEFAULT_GAMMA.get(name, 1.0) if gamma is None else gamma,
        power=_DEFAULT_POWER if power is None else power,
    )
    return LambdaLR(optimizer, schedule)


def _check(
    name: str,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: float,
    milestones: Sequence[int],
) -> None:
    if name not in SCHEDULERS:
        raise ValueError(f"Unknown scheduler {name!r}; use one of {', '.join(SCHEDULERS)}.")
    if epochs < 1 or steps_per_epoch < 1:
        raise ValueError(
            f"epochs and steps_per_epoch must be at least 1, got {epochs} and {steps_per_epoch}."
        )
    if not 0 <= warmup_epochs < epochs:
        raise ValueError(
            f"warmup_epochs is {warmup_epochs}; it must be at least 0 and less than the "
            f"{epochs} epochs of the training."
        )
    if name in ("step", "multistep") and not milestones:
        raise ValueError(f"The {name} scheduler needs milestones: the epochs where the rate drops.")
    if list(milestones) != sorted(milestones):
        raise ValueError(f"milestones must rise, got {list(milestones)}.")


def _warn_without_effect(
    name: str, milestones: Sequence[int], gamma: float | None, power: float | None
) -> None:
    without_effect = {
        "milestones": milestones and name not in ("step", "multistep"),
        "gamma": gamma is not None and name not in _DEFAULT_GAMMA,
        "power": power is not None and name != "poly",
    }
    for option in (option for option, given in without_effect.items() if given):
        warnings.warn(f"{option} has no effect on the {name} scheduler.", stacklevel=3)
