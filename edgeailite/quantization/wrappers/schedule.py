"""Schedule of a training: the states of batch norm, ranges and weights in each epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

# None: the default. False: never. A number: after as many epochs.
Epochs = int | bool | None


@dataclass(frozen=True)
class Stage:
    """State of a training in one epoch.

    Attributes:
        batch_norm_frozen: Batch norm statistics no longer learn.
        ranges_frozen: Activation ranges no longer learn.
        softness: Distance from the grid of weights that start soft, 1 to 0.
        damping: Strength that draws weights to their grid points.
        freeze_above: Frequency of oscillations above which weights are frozen; 0: none is.
    """

    batch_norm_frozen: bool = False
    ranges_frozen: bool = False
    softness: float = 0.0
    damping: float = 0.0
    freeze_above: float = 0.0


@dataclass(frozen=True)
class Schedule:
    """Stages of a training, as a pure function of the epoch.

    Args:
        batch_norm_epoch: Epoch (from 0) at whose start batch norm statistics freeze; None: never.
        range_epoch: Epoch at whose start activation ranges freeze; None: never.
        hard_epoch: First epoch in which all weights are on their grid. Weights that start soft get
            there linearly. 0: they are on it from the beginning.
        damping: Damping in the last epoch. It grows from 0, as half a cosine.
        freeze_oscillations: Frequency of oscillations above which weights are frozen in the last
            epoch. It falls from infinity: divided by the part of the damping. 0: none is frozen.
        total_epochs: Epochs of the training, over which the damping grows; 0: open.
        steps_per_epoch: Training batches of an epoch; None: each ``train()`` after a training batch
            begins one.

    Example:
        >>> stage = Schedule(batch_norm_epoch=3, range_epoch=5).at(4)
        >>> stage.batch_norm_frozen, stage.ranges_frozen
        (True, False)
    """

    batch_norm_epoch: int | None = None
    range_epoch: int | None = None
    hard_epoch: int = 0
    damping: float = 0.0
    freeze_oscillations: float = 0.0
    total_epochs: int = 0
    steps_per_epoch: int | None = None

    def at(self, epoch: int) -> Stage:
        """Return the stage of an epoch, counted from 0."""
        part = min(epoch / max(self.total_epochs - 1, 1), 1.0)
        rise = (1.0 - math.cos(math.pi * part)) / 2.0
        return Stage(
            batch_norm_frozen=self.batch_norm_epoch is not None and epoch >= self.batch_norm_epoch,
            ranges_frozen=self.range_epoch is not None and epoch >= self.range_epoch,
            softness=max(1.0 - epoch / self.hard_epoch, 0.0) if self.hard_epoch else 0.0,
            damping=self.damping * rise,
            freeze_above=self._freeze_above(rise),
        )

    def _freeze_above(self, rise: float) -> float:
        if self.freeze_oscillations == 0.0:
            return 0.0
        return self.freeze_oscillations / rise if rise > 0.0 else math.inf

    def refuse_replicas(self) -> None:
        """Raise a ValueError where copies of a model would lose what the schedule notes."""
        counts = {"steps_per_epoch": "batches", "freeze_oscillations": "jumps of weights"}
        for name, what in counts.items():
            if getattr(self, name):
                raise ValueError(
                    f"{name} counts {what}, which copies of a model on several devices "
                    f"(DataParallel) cannot: use DistributedDataParallel, or leave {name} out."
                )

    def unfrozen(self, epoch: int, batch_norm: bool = True, ranges: bool = True) -> Schedule:
        """Return the schedule without what it has frozen by `epoch`; later freezing stays."""
        return replace(
            self,
            batch_norm_epoch=_after(self.batch_norm_epoch, epoch, batch_norm),
            range_epoch=_after(self.range_epoch, epoch, ranges),
        )

    def without_freezing(self) -> Schedule:
        """Return the schedule that freezes nothing."""
        return replace(self, batch_norm_epoch=None, range_epoch=None)


def _after(freezes: int | None, epoch: int, changes: bool) -> int | None:
    return None if changes and freezes is not None and freezes <= epoch else freezes


def make_schedule(
    wrapper: str,
    total_epochs: int,
    num_batch_norm_update_epochs: Epochs = None,
    num_observer_update_epochs: Epochs = None,
    damping: float = 0.0,
    steps_per_epoch: int | None = None,
    freeze_oscillations: float = 0.0,
) -> Schedule:
    """Make the schedule that a wrapper's arguments ask for.

    Args:
        wrapper: Name of the wrapper's class, for messages.
        total_epochs: Epochs of the training.
        num_batch_norm_update_epochs: Epochs in which batch norm statistics learn; None:
            ``total_epochs // 2 - 1``; False: all.
        num_observer_update_epochs: Epochs in which activation ranges learn; None:
            ``total_epochs // 2 + 1``; False: all.
        damping: Damping in the last epoch.
        steps_per_epoch: Training batches of an epoch; None: ``train()`` counts the epochs.
        freeze_oscillations: Frequency above which weights are frozen in the last epoch.

    Raises:
        ValueError: An argument is outside of what it allows.
    """
    if isinstance(total_epochs, bool) or not isinstance(total_epochs, int) or total_epochs < 1:
        raise ValueError(
            f"total_epochs is {total_epochs!r}; {wrapper} needs the number of epochs you will "
            "train (1 or more): it decides when batch norm and ranges freeze."
        )
    if steps_per_epoch is not None and (type(steps_per_epoch) is not int or steps_per_epoch < 1):
        raise ValueError(
            f"steps_per_epoch is {steps_per_epoch!r}; allowed: None (train() counts the epochs), "
            "or the number of training batches of an epoch, 1 or more."
        )
    half = total_epochs // 2
    return Schedule(
        _freeze_epoch("num_batch_norm_update_epochs", num_batch_norm_update_epochs, half - 1),
        _freeze_epoch("num_observer_update_epochs", num_observer_update_epochs, half + 1),
        damping=damping,
        freeze_oscillations=freeze_oscillations,
        total_epochs=total_epochs,
        steps_per_epoch=steps_per_epoch,
    )


def _freeze_epoch(name: str, given: Epochs, default: int) -> int | None:
    if given is None:
        return default
    if given is False:
        return None
    if given is True or not isinstance(given, int) or given < 0:
        raise ValueError(
            f"{name} is {given!r}; allowed: None (half of total_epochs), False (never freeze), or "
            "the number of epochs after which it freezes, 0 or more."
        )
    return given
