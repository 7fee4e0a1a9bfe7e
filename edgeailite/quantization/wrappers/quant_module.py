"""QuantModule, the wrapper: schedule, training step, calibration, conversion, export."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edgeailite.files.weights import load_weights
from edgeailite.quantization.export.clip import clip_model
from edgeailite.quantization.export.export_format import ExportFormat
from edgeailite.quantization.export.fakeq import fakeq_model
from edgeailite.quantization.export.formats import OnnxOptions, find_writer, writers
from edgeailite.quantization.graph.model import (
    check_modules,
    compare_first_batch,
    program_of,
    target_of,
)
from edgeailite.quantization.graph.modes import modes_kept
from edgeailite.quantization.methods.distillation import Teacher
from edgeailite.quantization.methods.mixed_precision.bit_widths import BitWidths, apply_bit_widths
from edgeailite.quantization.methods.weight_clipping import constrain_weights
from edgeailite.quantization.methods.weight_ranges import start_weight_ranges
from edgeailite.quantization.modules.pact2 import quantizers
from edgeailite.quantization.prepare.prepare import check_finite_weights
from edgeailite.quantization.wrappers.arguments import warn_user
from edgeailite.quantization.wrappers.calibration import BiasCalibration, warn_of_missing_ranges
from edgeailite.quantization.wrappers.calibrator import Calibrator
from edgeailite.quantization.wrappers.converted import (
    ConvertedModule,
    as_tuple,
    convert_model,
    integer_graph,
)
from edgeailite.quantization.wrappers.evaluation import Evaluation
from edgeailite.quantization.wrappers.progress import Progress

if TYPE_CHECKING:
    from typing_extensions import Self

    from edgeailite.quantization.graph.model import GraphModel
    from edgeailite.quantization.methods.training import TrainingMethods
    from edgeailite.quantization.prepare.target import Target
    from edgeailite.quantization.wrappers.schedule import Schedule

# Contents of what torch.onnx.export writes of a prepared model.
_VIEWS = {"CLIP_MODEL": clip_model, "FAKEQ_MODEL": fakeq_model}


class QuantModule(Calibrator):
    """A prepared model with a schedule; the model is in ``.module``.

    Args:
        model: Prepared by :func:`prepare`.
        schedule: Stages of the training; None: nothing freezes.
        methods: Distillation of the training; its other options are in `model` and `schedule`.
        bit_widths: Bits of single layers.
        trains: False: training mode only calibrates.
        clip_weights: Clip outlying weights once, before the first training iteration.
        bias_rate: Part of the difference that one batch corrects in the biases; 0: none. None: the
            mean over the batches.
        verbose: Print when something freezes or is clipped.

    Attributes:
        progress: Position in the schedule.
        trains: False: training mode only calibrates: ranges (and biases) learn from the data, batch
            norm and dropout stay in evaluation mode, no gradients.
        post_training: What each method gained in the last :meth:`calibrate` with a `quality`.
        drop_result: How far the last :meth:`calibrate` with a `max_drop` went; None without.
        integer_evaluation: Evaluation computes the integers that the device will compute, where
            the simulation may differ by a step: with free scales or long sums. False: it simulates.
            The gradient is the simulation's, and a module with a hook asks for it.
        teacher: The float model that is learned from, as it was before the first calibration or
            training; None without distillation.
    """

    def __init__(
        self,
        model: GraphModel,
        schedule: Schedule | None = None,
        methods: TrainingMethods | None = None,
        bit_widths: BitWidths | None = None,
        *,
        trains: bool = True,
        clip_weights: bool = False,
        bias_rate: float | None = 0.0,
        verbose: bool = True,
    ) -> None:
        super().__init__()
        self.module, self.trains, self.verbose = model, trains, verbose
        program_of(model).export_view = _VIEWS[target_of(model).traced_format]
        self.progress = Progress(schedule)
        self.bias_calibration = BiasCalibration(model, bias_rate)
        self.clip_weights, self.weights_clipped = clip_weights, False
        if bit_widths is not None:
            apply_bit_widths(model, bit_widths)
        start_weight_ranges(model)
        self.integer_evaluation, self._evaluation = True, Evaluation(model, integer_graph)
        self.teacher: Teacher | None = None
        if methods is not None and methods.distillation > 0:
            self.teacher = Teacher(model, methods.distillation, methods.temperature)
        self.has_begun = False
        self.training = model.training

    def __getattr__(self, name: str) -> Any:
        """Look an attribute up; one that a wrapper does not have is the model's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            module = self.__dict__.get("_modules", {}).get("module")
            if module is None or name.startswith("__") or not hasattr(module, name):
                raise
            return getattr(module, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the original model; without gradients where training mode only calibrates."""
        self._compare_first_batch(args, kwargs)
        with torch.set_grad_enabled(self.trains and torch.is_grad_enabled()):
            if self.training:
                self._count_batch()
                return self._train(args, kwargs) if self.trains else self._calibrate(args, kwargs)
            if torch.compiler.is_exporting():
                return self.module(*args, **kwargs)
            if not self._evaluation.has_begun:
                self._begin_evaluation()
            if self._evaluation.calibration.goes_on(self.module):
                with self._evaluation.calibration.observing(self.module):
                    return self._calibrate(args, kwargs)
            return self._evaluation.run(self.module, args, kwargs, self.integer_evaluation)

    def _count_batch(self) -> None:
        self.progress.has_stepped = True
        schedule = self.progress.schedule
        if getattr(self, "_is_replica", False):
            schedule.refuse_replicas()
        if schedule.steps_per_epoch is not None:
            self._say(*self.progress.count_batch(self.module, self.trains))

    def _train(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._clip_weights_once()
        if self.bias_calibration.corrects:
            with modes_kept(self.module):  # its passes are none of the batch norms'
                self._let_ranges_learn()
                self.bias_calibration.run(self.module, args, kwargs)
        output = self.module(*args, **kwargs)
        return output if self.teacher is None else self.teacher.distill(output, args, kwargs)

    def _calibrate(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._clip_weights_once()
        if self.bias_calibration.corrects:
            return self.bias_calibration.run(self.module, args, kwargs)
        return self.module(*args, **kwargs)

    @torch.compiler.disable
    def _begin_evaluation(self) -> None:
        """Calibrate if there is no range at all; else say what deserves a look."""
        self._evaluation.has_begun = True
        if not self.trains and self._evaluation.calibration.begin(self.module):
            self._begin()
            warn_user(
                f"{type(self).__name__} has no ranges yet and calibrates with the batches that "
                "come now, in evaluation mode, until the next train(), eval(), convert() or "
                "export(). To calibrate, train() or calibrate() is the clearer way."
            )
        elif not warn_of_missing_ranges(self.module):
            self._say(*self._evaluation.notes(self.module))

    def _compare_first_batch(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if compare_first_batch(self.module, args, kwargs):
            self._say("no example input was given: compared the graph with the model on this batch")

    def _clip_weights_once(self) -> None:
        if not self.clip_weights or self.weights_clipped:
            return
        self.weights_clipped = True
        clipped = constrain_weights(self.module)
        if clipped:
            paths = ", ".join(clipped)
            self._say(f"clipped outlying weights of {len(clipped)} layers: {paths}")

    def _say(self, *messages: str) -> None:
        for message in messages if self.verbose else ():
            print(f"edgeailite: {message}")  # noqa: T201

    def train(self, mode: bool = True) -> Self:
        """Training mode goes on with the schedule; evaluation freezes nothing for good.

        The first call begins an epoch, and so does each call after a training batch, unless the
        schedule counts batches.

        Raises:
            ValueError: A weight or a range has become NaN or infinite, or a module of the model was
                replaced; the message names it.
        """
        check_modules(self.module)
        super().train(mode)
        check_finite_weights(self.module)
        self._evaluation.end()
        if not mode:
            return self
        self._begin()
        self._say(*self.progress.enter_training(self.module, self.trains))
        if not self.trains:
            self._let_ranges_learn()
        return self

    def _let_ranges_learn(self) -> None:
        """Evaluation mode, but for the quantizers."""
        self.module.eval()
        for quantizer in quantizers(self.module).values():
            quantizer.train()

    def _begin(self) -> None:
        """Once: learned ranges and the teacher start from the weights as they are by now."""
        if self.has_begun:
            return
        self.has_begun = True
        start_weight_ranges(self.module)
        if self.teacher is not None:
            self.teacher.start_from(self.module)

    @property
    def epoch(self) -> int:
        """Current epoch of the schedule, from 0; -1 before the first one."""
        return self.progress.epoch

    @property
    def batch_norm_epoch(self) -> int | None:
        """Epoch at whose start batch norms freeze; read-only: set ``progress.schedule``."""
        return self.progress.schedule.batch_norm_epoch

    @property
    def range_epoch(self) -> int | None:
        """Epoch at whose start ranges freeze; read-only: set ``progress.schedule``."""
        return self.progress.schedule.range_epoch

    def freeze(self, freeze_bn: bool = True, freeze_observers: bool = True) -> Self:
        """Stop batch norm statistics and/or activation ranges, from now on."""
        self.progress.freeze(self.module, freeze_bn, freeze_observers)
        return self

    def unfreeze(self, freeze_bn: bool = True, freeze_observers: bool = True) -> Self:
        """Undo :meth:`freeze`; the schedule no longer freezes what it had frozen already."""
        trains = self.training and self.trains
        self.progress.unfreeze(self.module, trains, freeze_bn, freeze_observers)
        return self

    def get_extra_state(self) -> dict[str, Any]:
        """Return the position in the schedule, and the bias corrections made so far."""
        return {
            **self.progress.state(),
            "weights_clipped": self.weights_clipped,
            "has_begun": self.has_begun,
            "corrections": dict(self.bias_calibration.corrections),
            "corrected_batches": self.bias_calibration.num_batches,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue a schedule."""
        self.progress.restore(state)
        self.weights_clipped = state.get("weights_clipped", self.weights_clipped)
        self.has_begun = state.get("has_begun", self.has_begun)
        self.bias_calibration.restore(state["corrections"], state.get("corrected_batches", 0))

    def load_weights(
        self, source: Mapping[str, Tensor] | str | os.PathLike[str], **options: Any
    ) -> Self:
        """Load float or quantized weights into ``.module`` and print what was loaded and what not.

        Args:
            source: A state dict, or the path of a checkpoint.
            **options: As in :func:`~edgeailite.files.weights.load_weights`.
        """
        weights = source if isinstance(source, Mapping) else os.fspath(source)
        load_weights(self.module, weights, **options)
        return self

    @property
    def target(self) -> Target:
        """Hardware that the model is prepared for."""
        return target_of(self.module)

    @property
    def formats(self) -> tuple[ExportFormat, ...]:
        """Formats that :meth:`export` writes."""
        return tuple(ExportFormat(w.format) for w in writers(self.target.arithmetic))

    def convert(self, format: ExportFormat | str | None = None) -> ConvertedModule:
        """Make the integer graph of the model as it is now; this module does not change.

        Args:
            format: Default of :meth:`ConvertedModule.export`; None: the target's own.

        Raises:
            ValueError: A format that holds no integers or is another target's; a weight or a range
                is NaN or infinite, or a range has never seen data.
        """
        self._leave()
        return ConvertedModule(*convert_model(self.module, format))

    def _leave(self) -> None:
        """Before the model goes elsewhere as it is: end the calibration, name biases."""
        self._evaluation.calibration.end()
        self._say(*self._evaluation.notes(self.module))

    def write(
        self,
        example_input: Tensor | Sequence[Tensor],
        path: str | os.PathLike[str],
        format: ExportFormat | str | None,
        options: OnnxOptions,
        strict: bool,
    ) -> Path:
        """Write a file; :meth:`export` with its options in one object."""
        chosen = find_writer(format or self.target.default_format, writers(self.target.arithmetic))
        if chosen.source == "converted":
            converted = self.convert(chosen.format)
            return converted.write(example_input, path, chosen.format, options, strict)
        if strict:
            self.target.warn_of_strict()
        self._leave()
        return chosen.write(self.module, as_tuple(example_input), path, options)

    def export_c(
        self,
        example_input: Tensor | tuple[Tensor, ...],
        folder: str | os.PathLike[str],
        name: str = "model",
    ) -> list[Path]:
        """Convert, and write C for a device; see :meth:`ConvertedModule.export_c`.

        Raises:
            ValueError: An operation, or the target, has no form in C; the message names it.
        """
        return self.convert().export_c(example_input, folder, name)
