"""Progress of a wrapper in its schedule, and the states that it sets in the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from edgeailite.quantization.graph.operations import BATCH_NORM_MODULES
from edgeailite.quantization.modules.layer import QuantLayer
from edgeailite.quantization.modules.pact2 import freeze_quant_range, unfreeze_quant_range
from edgeailite.quantization.wrappers.arguments import warn_user
from edgeailite.quantization.wrappers.schedule import Schedule, Stage


class Progress:
    """Position in a schedule; sets the states of batch norms, ranges and weights.

    Args:
        schedule: Stages of the training; None: nothing freezes.

    Attributes:
        schedule: Stages of the epochs to come.
        epoch: Current epoch; -1 before the first one.
        has_stepped: A training batch ran in the current epoch.
        batches: Training batches in the current epoch, where the schedule counts them.
        batch_norm_frozen: Batch norm statistics do not learn, by schedule or by hand.
        ranges_frozen: Activation ranges do not learn, by schedule or by hand.
    """

    def __init__(self, schedule: Schedule | None = None) -> None:
        self.schedule = schedule or Schedule()
        self.epoch = -1
        self.has_stepped, self.batches = False, 0
        self.batch_norm_frozen = self.ranges_frozen = False

    def enter_training(self, model: nn.Module, trains: bool) -> list[str]:
        """Begin an epoch if one is due, and set the states of its stage.

        The first one is due at once, the next when the one before has had a training batch. Where
        the schedule counts batches, only the first is due here.

        Args:
            model: Just put into training mode.
            trains: As of :meth:`begin_epoch`.

        Returns:
            A message for each thing that freezes.
        """
        counts_batches = self.schedule.steps_per_epoch is not None
        if self.epoch < 0 or (self.has_stepped and not counts_batches):
            return self.begin_epoch(model, trains)
        return self._set_stage(model, trains)

    @torch.compiler.disable
    def count_batch(self, model: nn.Module, trains: bool) -> list[str]:
        """Count a training batch that is about to run; begin an epoch if the last one is full.

        Args:
            model: In training mode.
            trains: As of :meth:`begin_epoch`.

        Returns:
            A message for each thing that freezes.
        """
        steps, messages = self.schedule.steps_per_epoch, []
        if self.epoch < 0 or (steps is not None and self.batches >= steps):
            messages = self.begin_epoch(model, trains)
        self.batches += 1
        return messages

    def begin_epoch(self, model: nn.Module, trains: bool) -> list[str]:
        """Go to the next epoch and set the states of its stage.

        Args:
            model: In training mode.
            trains: False: a calibration, in which weights are neither soft, damped nor frozen.

        Returns:
            A message for each thing that freezes.
        """
        self.epoch += 1
        self.has_stepped, self.batches = False, 0
        if trains and self.epoch == self.schedule.total_epochs > 0:
            warn_user(_beyond(self.schedule))
        return self._set_stage(model, trains)

    def _set_stage(self, model: nn.Module, trains: bool) -> list[str]:
        stage = self.schedule.at(self.epoch)
        _set_weights(model, stage if trains else Stage())
        messages = []
        if stage.batch_norm_frozen and not self.batch_norm_frozen:
            self.batch_norm_frozen = True
            messages.append("batch norm statistics")
        if stage.ranges_frozen and not self.ranges_frozen:
            self.freeze(model, batch_norm=False)
            messages.append("activation ranges")
        self._apply_frozen_batch_norm(model)
        return [f"epoch {self.epoch}: {what} are frozen from here on" for what in messages]

    def freeze(self, model: nn.Module, batch_norm: bool = True, ranges: bool = True) -> None:
        """Stop batch norm statistics and/or activation ranges."""
        if batch_norm:
            self.batch_norm_frozen = True
            self._apply_frozen_batch_norm(model)
        if ranges:
            self.ranges_frozen = True
            freeze_quant_range(model)

    def unfreeze(
        self, model: nn.Module, training: bool, batch_norm: bool = True, ranges: bool = True
    ) -> None:
        """Undo :meth:`freeze`; the schedule no longer freezes what it had frozen already.

        Args:
            model: Prepared model.
            training: Put batch norms into training mode at once, not with the next epoch.
            batch_norm: Batch norm statistics go on learning.
            ranges: Activation ranges go on learning.
        """
        self.schedule = self.schedule.unfrozen(self.epoch, batch_norm, ranges)
        if batch_norm:
            self.batch_norm_frozen = False
            if training:
                _set_batch_norms(model, training=True)
        if ranges:
            self.ranges_frozen = False
            unfreeze_quant_range(model)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Come back to the same place in the same epoch afterwards."""
        place = self.epoch, self.has_stepped, self.batches
        try:
            yield
        finally:
            self.epoch, self.has_stepped, self.batches = place

    def _apply_frozen_batch_norm(self, model: nn.Module) -> None:
        if self.batch_norm_frozen:
            _set_batch_norms(model, training=False)

    def state(self) -> dict[str, Any]:
        """Return the position, for a checkpoint."""
        return {
            "epoch": self.epoch,
            "has_stepped": self.has_stepped,
            "batches": self.batches,
            "batch_norm_epoch": self.schedule.batch_norm_epoch,
            "range_epoch": self.schedule.range_epoch,
            "batch_norm_frozen": self.batch_norm_frozen,
            "ranges_frozen": self.ranges_frozen,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a position that :meth:`state` returned; what it lacks stays.

        Earlier versions did not note the batches: their positions count as ends of epochs.
        """
        end = {"has_stepped": True, "batches": self.schedule.steps_per_epoch or 0}
        state = {**self.state(), **end, **state}
        self.epoch, self.batches = state["epoch"], state["batches"]
        self.has_stepped = state["has_stepped"]
        self.schedule = replace(
            self.schedule,
            batch_norm_epoch=state["batch_norm_epoch"],
            range_epoch=state["range_epoch"],
        )
        self.batch_norm_frozen = state["batch_norm_frozen"]
        self.ranges_frozen = state["ranges_frozen"]


def _beyond(schedule: Schedule) -> str:
    total, steps = schedule.total_epochs, schedule.steps_per_epoch
    counted = (
        "Each train() after a training batch begins an epoch: a loop that validates within an "
        "epoch needs steps_per_epoch as well."
        if steps is None
        else f"An epoch has steps_per_epoch={steps} training batches."
    )
    return (
        f"Epoch {total + 1} of total_epochs={total} begins: the schedule has ended, and what is "
        f"frozen stays so. Give total_epochs the number of epochs that you train. {counted}"
    )


def _set_weights(model: nn.Module, stage: Stage) -> None:
    for layer in model.modules():
        if isinstance(layer, QuantLayer):
            layer.weight_quantizer.damping = stage.damping
            layer.weight_quantizer.freeze_above = stage.freeze_above
            if layer.weight_quantizer.starts_soft:
                layer.weight_quantizer.softness = stage.softness


def _set_batch_norms(model: nn.Module, training: bool) -> None:
    for module in model.modules():
        if isinstance(module, BATCH_NORM_MODULES):
            module.training = training  # not train(): a quantizer behind it is its child
