"""Progress of a wrapper in its schedule, and the states that it sets in the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from edgeailite.quantization.graph.operations import BATCH_NORM_MODULES
from edgeailite.quantization.modules.layer import QuantLayer
from edgeailite.quantization.modules.pact2 import freeze_quant_range, unfreeze_quant_range
from edgeailite.quantization.wrappers.schedule import Schedule, Stage


class Progress:
    """Position in a schedule; sets the states of batch norms, ranges and weights.

    Args:
        schedule: Stages of the training; None: nothing freezes.

    Attributes:
        schedule: Stages of the epochs to come.
        epoch: Current epoch; -1 before the first one.
        batch_norm_frozen: Batch norm statistics do not learn, by schedule or by hand.
        ranges_frozen: Activation ranges do not learn, by schedule or by hand.
    """

    def __init__(self, schedule: Schedule | None = None) -> None:
        self.schedule = schedule or Schedule()
        self.epoch = -1
        self.batch_norm_frozen = self.ranges_frozen = False

    def begin_epoch(self, model: nn.Module, trains: bool) -> list[str]:
        """Go to the next epoch and set the states of its stage.

        Args:
            model: In training mode.
            trains: False: a calibration, in which weights are neither soft nor damped.

        Returns:
            A message for each thing that freezes.
        """
        self.epoch += 1
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

    def _apply_frozen_batch_norm(self, model: nn.Module) -> None:
        if self.batch_norm_frozen:
            _set_batch_norms(model, training=False)

    def state(self) -> dict[str, Any]:
        """Return the position, for a checkpoint."""
        return {
            "epoch": self.epoch,
            "batch_norm_epoch": self.schedule.batch_norm_epoch,
            "range_epoch": self.schedule.range_epoch,
            "batch_norm_frozen": self.batch_norm_frozen,
            "ranges_frozen": self.ranges_frozen,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a position that :meth:`state` returned; what it lacks stays."""
        state = {**self.state(), **state}
        self.epoch = state["epoch"]
        self.schedule = replace(
            self.schedule,
            batch_norm_epoch=state["batch_norm_epoch"],
            range_epoch=state["range_epoch"],
        )
        self.batch_norm_frozen = state["batch_norm_frozen"]
        self.ranges_frozen = state["ranges_frozen"]


def _set_weights(model: nn.Module, stage: Stage) -> None:
    for layer in model.modules():
        if isinstance(layer, QuantLayer):
            layer.weight_quantizer.damping = stage.damping
            if layer.weight_quantizer.starts_soft:
                layer.weight_quantizer.softness = stage.softness


def _set_batch_norms(model: nn.Module, training: bool) -> None:
    for module in model.modules():
        if isinstance(module, BATCH_NORM_MODULES):
            module.training = training  # not train(): a quantizer behind it is its child
