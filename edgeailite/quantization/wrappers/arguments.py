"""Arguments that several wrappers take: checks, and warnings of options without effect."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgeailite.quantization.methods.training import TrainingMethods
from edgeailite.quantization.wrappers.schedule import Epochs, Schedule, make_schedule


def warn_user(message: str) -> None:
    """Warn at the line that calls a wrapper, or makes one."""
    level, passing = 1, ("torch.", __name__.rpartition(".")[0])
    while sys._getframe(level).f_globals.get("__name__", "").startswith(passing):
        level += 1
    warnings.warn(message, stacklevel=level + 1)


def as_inputs(given: Any) -> tuple[Any, ...]:
    """Return one input, or several, as a tuple."""
    return tuple(given) if isinstance(given, tuple | list) else (given,)


def read_example_inputs(
    args: Sequence[Any], example_inputs: Any, example_kwargs: Mapping[str, Any] | None = None
) -> tuple[Any, ...] | None:
    """Return the example inputs that were given one by one or together; None: none were.

    Raises:
        ValueError: They were given in both ways.
    """
    if args and example_inputs is not None:
        raise ValueError(
            f"{len(args)} positional inputs and example_inputs were given; give the inputs once."
        )
    given = args or example_inputs
    if given is None or (isinstance(given, tuple | list) and not given):
        return () if example_kwargs else None
    return as_inputs(given)


def read_methods(
    wrapper: str,
    methods: TrainingMethods | None,
    is_qat: bool,
    bias_calibration_factor: float | None,
) -> TrainingMethods:
    """Return the training's methods, checked together with the rate of its bias correction.

    Raises:
        ValueError: Methods were given to a wrapper that does not train, or the rate is no fraction.
    """
    if methods is not None and not is_qat:
        raise ValueError(
            f"methods was given, but this {wrapper} does not train: learned ranges, damping and "
            "distillation need gradients. Leave methods out, or wrap for quantization-aware "
            "training."
        )
    check_rate("bias_calibration_factor", bias_calibration_factor)
    return methods or TrainingMethods()


def check_rate(name: str, rate: float | None) -> None:
    """Raise a ValueError where the rate of a bias correction is no fraction."""
    if rate is not None and not 0.0 <= rate <= 1.0:
        raise ValueError(
            f"{name} is {rate!r}; allowed: 0 (off) to 1, or None, the mean over the batches."
        )


def make_fx_schedule(
    wrapper: str,
    is_qat: bool,
    total_epochs: int,
    num_batch_norm_update_epochs: Epochs,
    num_observer_update_epochs: Epochs,
    methods: TrainingMethods,
    steps_per_epoch: int | None,
) -> Schedule:
    """Make the schedule of a training or a calibration; see :func:`make_schedule`."""
    freezing = num_batch_norm_update_epochs, num_observer_update_epochs
    schedule = make_schedule(
        wrapper,
        total_epochs,
        *freezing,
        damping=methods.damping,
        steps_per_epoch=steps_per_epoch,
        freeze_oscillations=methods.freeze_oscillations,
    )
    if is_qat:
        return schedule
    if num_batch_norm_update_epochs not in (None, 0):
        warn_user(
            f"num_batch_norm_update_epochs={num_batch_norm_update_epochs!r} has no effect: "
            "post-training calibration folds batch norm as it was trained. Leave it out."
        )
    return replace(schedule, batch_norm_epoch=None)
