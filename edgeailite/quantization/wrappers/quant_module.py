"""What every wrapper shares: schedule, calibration, conversion, export."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from edgeailite.quantization.export.clip import clip_model
from edgeailite.quantization.export.export_format import ExportFormat
from edgeailite.quantization.export.fakeq import fakeq_model
from edgeailite.quantization.export.formats import OnnxOptions, find_writer, writers
from edgeailite.quantization.graph.model import GraphModel
from edgeailite.quantization.graph.operations import BATCH_NORM_MODULES
from edgeailite.quantization.graph.running import as_batches
from edgeailite.quantization.methods.batch_norm import reestimate_batch_norms
from edgeailite.quantization.methods.bias_corrector import BiasCorrector
from edgeailite.quantization.methods.distillation import Teacher
from edgeailite.quantization.methods.gains import MethodGain, render_gains
from edgeailite.quantization.methods.mixed_precision.bit_widths import BitWidths, apply_bit_widths
from edgeailite.quantization.methods.post_training import methods_named, post_training
from edgeailite.quantization.methods.training import TrainingMethods
from edgeailite.quantization.methods.weight_clipping import constrain_weights
from edgeailite.quantization.methods.weight_ranges import start_weight_ranges
from edgeailite.quantization.modules.layer import QuantLayer
from edgeailite.quantization.modules.pact2 import (
    freeze_quant_range,
    quantizers,
    unfreeze_quant_range,
)
from edgeailite.quantization.prepare.prepare import check_finite_weights
from edgeailite.quantization.prepare.target import Target
from edgeailite.quantization.wrappers.converted import ConvertedModule, as_tuple

# What torch.onnx.export of a prepared model writes.
_VIEWS = {"CLIP_MODEL": clip_model, "FAKEQ_MODEL": fakeq_model}

Wrapper = TypeVar("Wrapper", bound="QuantModule")


class QuantModule(nn.Module):
    """A prepared model with a schedule; the model is in ``.module``.

    Args:
        model: Prepared by :func:`prepare`.
        batch_norm_epoch: Epoch (from 0) at whose start batch norm statistics freeze; None: never.
        range_epoch: Likewise for activation ranges.
        clip_weights: Clip outlying weights once, before the first training iteration.
        bias_rate: Bias correction per training batch; 0: none.
        methods: How the training goes beyond plain quantization-aware training.
        total_epochs: Epochs of the training, over which damping grows.
        bit_widths: Bits of single layers.
        verbose: Print when something freezes or is clipped.

    Attributes:
        trains: False: training mode only calibrates: ranges (and biases) learn from the data, batch
            norm and dropout stay in evaluation mode, no gradients.
        post_training: What each method gained in the last :meth:`calibrate` with a `quality`.
        teacher: The float model that is learned from, as it was before the first calibration or
            training; None without distillation.
    """

    trains = True

    def __init__(
        self,
        model: GraphModel,
        *,
        batch_norm_epoch: int | None = None,
        range_epoch: int | None = None,
        clip_weights: bool = False,
        bias_rate: float = 0.0,
        methods: TrainingMethods | None = None,
        total_epochs: int = 0,
        bit_widths: BitWidths | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__()
        self.methods, self.total_epochs = methods or TrainingMethods(), total_epochs
        self.module, self.verbose = model, verbose
        model.export_view = _VIEWS[model.target.traced_format]
        self.batch_norm_epoch, self.range_epoch = batch_norm_epoch, range_epoch
        self.clip_weights, self.bias_rate = clip_weights, bias_rate
        self.epoch = -1
        self.batch_norm_frozen = self.ranges_frozen = self.weights_clipped = False
        self._ranges_checked = False
        self._bias_correction: BiasCorrector | None = None
        self._corrections: dict[str, Tensor] = {}
        self.post_training: list[MethodGain] = []
        if bit_widths is not None:
            apply_bit_widths(model, bit_widths)
        start_weight_ranges(model)
        self.teacher: Teacher | None = None
        if self.methods.distillation > 0:
            self.teacher = Teacher(model, self.methods.distillation, self.methods.temperature)
        self.has_begun = False
        self.training = model.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the original model; without gradients where training mode only calibrates."""
        with torch.set_grad_enabled(self.trains and torch.is_grad_enabled()):
            if self.training:
                self._before_training_batch()
                if self.bias_rate > 0:
                    output = self._correct_biases(args, kwargs)
                    if not self.trains:
                        return output
            elif not self._ranges_checked and not torch.compiler.is_exporting():
                self._warn_of_missing_ranges()
            output = self.module(*args, **kwargs)
            if self.teacher is None or not (self.training and self.trains):
                return output
            return self.teacher.distill(output, args, kwargs)

    def _before_training_batch(self) -> None:
        if not self.clip_weights or self.weights_clipped:
            return
        self.weights_clipped = True
        clipped = constrain_weights(self.module)
        if clipped:
            paths = ", ".join(clipped)
            self._say(f"clipped outlying weights of {len(clipped)} layers: {paths}")

    def _say(self, message: str) -> None:
        if self.verbose:
            print(f"edgeailite: {message}")  # noqa: T201

    def _correct_biases(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        """One batch of bias correction; returns the quantized output."""
        if self._bias_correction is not None and self._bias_correction.is_stale:
            self._bias_correction, self._corrections = None, {}
        if self._bias_correction is None:
            self._bias_correction = BiasCorrector(self.module, self.bias_rate, self._corrections)
            self._corrections = self._bias_correction.corrections
        return self._bias_correction.run(args, kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """All but what the next batch makes anew."""
        return {**self.__dict__, "_bias_correction": None}

    def _warn_of_missing_ranges(self) -> None:
        self._ranges_checked = True
        missing = [name for name, q in quantizers(self.module).items() if not q.has_range]
        if missing:
            warnings.warn(
                f"{len(missing)} activation ranges have never seen data (the first: "
                f"'{missing[0]}'): outputs are clipped at placeholders. "
                "Train or calibrate first, or load a quantized checkpoint.",
                stacklevel=3,
            )

    def train(self, mode: bool = True) -> QuantModule:
        """Training mode starts the next epoch of the schedule; evaluation freezes nothing for good.

        Raises:
            ValueError: A weight or a range has become NaN or infinite; the message names it.
        """
        super().train(mode)
        check_finite_weights(self.module)
        self._ranges_checked = False
        if mode:
            self.epoch += 1
            self._begin()
            self._follow_schedule()
            self._apply_frozen_batch_norm()
            if not self.trains:
                self.module.eval()
                for quantizer in quantizers(self.module).values():
                    quantizer.train()
        return self

    def _begin(self) -> None:
        """Once: learned ranges and the teacher start from the weights as they are by now."""
        if self.has_begun:
            return
        self.has_begun = True
        start_weight_ranges(self.module)
        if self.teacher is not None:
            self.teacher.start_from(self.module)

    def _follow_schedule(self) -> None:
        damping = self.methods.damping_in(self.epoch, self.total_epochs) if self.trains else 0.0
        for layer in self.module.modules():
            if isinstance(layer, QuantLayer):
                layer.weight_quantizer.damping = damping
        if (
            not self.batch_norm_frozen
            and self.batch_norm_epoch is not None
            and self.epoch >= self.batch_norm_epoch
        ):
            self.freeze(freeze_bn=True, freeze_observers=False)
            self._say(f"epoch {self.epoch}: batch norm statistics are frozen from here on")
        if (
            not self.ranges_frozen
            and self.range_epoch is not None
            and self.epoch >= self.range_epoch
        ):
            self.freeze(freeze_bn=False, freeze_observers=True)
            self._say(f"epoch {self.epoch}: activation ranges are frozen from here on")

    def _apply_frozen_batch_norm(self) -> None:
        if self.batch_norm_frozen:
            for module in self.module.modules():
                if isinstance(module, BATCH_NORM_MODULES):
                    module.training = False  # not eval(): a quantizer behind it is its child

    def freeze(self, freeze_bn: bool = True, freeze_observers: bool = True) -> QuantModule:
        """Stop batch norm statistics and/or activation ranges, from now on."""
        if freeze_bn:
            self.batch_norm_frozen = True
            self._apply_frozen_batch_norm()
        if freeze_observers:
            self.ranges_frozen = True
            freeze_quant_range(self.module)
        return self

    def unfreeze(self, freeze_bn: bool = True, freeze_observers: bool = True) -> QuantModule:
        """Undo :meth:`freeze`; the schedule no longer freezes what it had frozen already."""
        if freeze_bn:
            self.batch_norm_frozen = False
            self.batch_norm_epoch = self._later(self.batch_norm_epoch)
            if self.training:
                for module in self.module.modules():
                    if isinstance(module, BATCH_NORM_MODULES):
                        module.training = True
        if freeze_observers:
            self.ranges_frozen, self.range_epoch = False, self._later(self.range_epoch)
            unfreeze_quant_range(self.module)
        return self

    def _later(self, epoch: int | None) -> int | None:
        return None if epoch is None or epoch <= self.epoch else epoch

    def get_extra_state(self) -> dict[str, Any]:
        """Where the schedule stands, and the bias corrections made so far."""
        state = {name: getattr(self, name) for name in self._SCHEDULE}
        return {**state, "corrections": dict(self._corrections)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue a schedule."""
        for name in self._SCHEDULE:
            setattr(self, name, state.get(name, getattr(self, name)))
        self._bias_correction, self._corrections = None, dict(state["corrections"])

    _SCHEDULE = (
        "epoch",
        "batch_norm_epoch",
        "range_epoch",
        "batch_norm_frozen",
        "ranges_frozen",
        "weights_clipped",
        "has_begun",
    )

    def calibrate(
        self: Wrapper,
        data: Iterable[Any],
        num_batches: int | None = None,
        quality: str | Sequence[str] | None = None,
    ) -> Wrapper:
        """Let ranges and biases learn from data, without gradients; ends in evaluation mode.

        Args:
            data: Batches: a tensor, or a tuple or list that begins with the model's inputs (a
                data loader's ``(images, target)`` does).
            num_batches: How many to take; None: all.
            quality: None: batch by batch, as training mode does that only calibrates. ``'fast'``
                (seconds) or ``'best'`` (minutes), or names of methods in the order they are to run
                in: see :func:`~edgeailite.quantization.methods.methods_named`. They
                work on all batches at once, which are kept in memory; what each gained is printed,
                and in `post_training`.

        Raises:
            ValueError: `data` gave no batch, or there is no such quality or method.
        """
        if quality is not None:
            return self._calibrate_at_once(data, num_batches, quality)
        trains, self.trains = self.trains, False
        epoch, count = self.epoch, 0
        try:
            self.train()
            for batch in tqdm(data, "calibrating", total=num_batches, leave=False, disable=None):
                inputs = (batch,) if isinstance(batch, Tensor) else tuple(batch)[: self._num_inputs]
                self(*inputs)
                count += 1
                if count == num_batches:
                    break
        finally:
            self.trains = trains
            self.epoch = epoch if trains else self.epoch  # no epoch of the training
            self.eval()
        if count == 0:
            raise ValueError("There was no batch to calibrate with: the data is empty.")
        return self

    def _calibrate_at_once(
        self: Wrapper, data: Iterable[Any], num_batches: int | None, quality: str | Sequence[str]
    ) -> Wrapper:
        methods = methods_named(quality)
        self._begin()
        self.eval()
        batches = as_batches(data, self._num_inputs, num_batches)
        self.post_training = post_training(self.module, batches, methods)
        self._say(f"post-training\n{render_gains(self.post_training)}")
        return self

    def reestimate_batch_norms(
        self: Wrapper, data: Iterable[Any], num_batches: int | None = None
    ) -> Wrapper:
        """Measure batch norm statistics anew on the quantized network; ends in evaluation mode.

        Args:
            data: Batches, as of :meth:`calibrate`; training images.
            num_batches: How many to take; None: all.

        Raises:
            ValueError: `data` gave no batch.
        """
        self.eval()
        reestimate_batch_norms(self.module, as_batches(data, self._num_inputs, num_batches))
        return self

    @property
    def _num_inputs(self) -> int:
        return len(self.module.graph.find_nodes(op="placeholder"))

    @property
    def target(self) -> Target:
        """Hardware that the model is prepared for."""
        return self.module.target

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
                is NaN or infinite.
        """
        chosen = self._converted_format(format)
        check_finite_weights(self.module)
        return ConvertedModule(self.target.convert(self.module), chosen)

    def _converted_format(self, name: ExportFormat | str | None) -> str:
        return find_writer(
            name or self.target.default_format, writers(self.target.arithmetic, "converted")
        ).format

    def export(
        self,
        example_input: Tensor | tuple[Tensor, ...],
        path: str | os.PathLike[str],
        *,
        format: ExportFormat | str | None = None,
        opset_version: int | None = None,
        input_names: Sequence[str] | None = None,
        output_names: Sequence[str] | None = None,
        dynamic_batch: bool = True,
        simplify: bool | None = None,
        strict: bool = False,
    ) -> Path:
        """Write ONNX; beside an integer graph, TIDL's settings as ``<stem>.tidl.json``.

        Args:
            example_input: Input to trace with.
            path: File to write; it appears complete or not at all.
            format: Contents of the file, see :class:`ExportFormat`; None: the target's own
                integers (``QDQ_MODEL``; for TI's NPU ``TINPU_INT_MODEL``).
            opset_version: 13 or newer; the file holds exactly this one. None: 18
                (``TINPU_INT_MODEL``: 17).
            input_names: Names of the inputs; None: those of the model's own ``forward``.
            output_names: Names of the outputs; None: the exporter's.
            dynamic_batch: Leave the batch size open.
            simplify: Let the exporter fuse operators; False: leave them, with constants folded.
                None: fuse, except in ``FLOAT_MODEL``.
            strict: For TI's NPU: raise, instead of warning, where the model has an operation that
                it does not compute.

        Raises:
            ValueError: A format that the target does not have, an opset that cannot be written,
                or, with `strict`, an operation that the NPU does not compute.
        """
        options = OnnxOptions(opset_version, input_names, output_names, dynamic_batch, simplify)
        return self._write(example_input, path, format, options, strict)

    def _write(
        self,
        example_input: Tensor | tuple[Tensor, ...],
        path: str | os.PathLike[str],
        format: ExportFormat | str | None,
        options: OnnxOptions,
        strict: bool,
    ) -> Path:
        chosen = find_writer(format or self.target.default_format, writers(self.target.arithmetic))
        if chosen.source == "converted":
            converted = self.convert(chosen.format)
            return converted.write(example_input, path, chosen.format, options, strict)
        if strict:
            self.target.warn_of_strict()
        return chosen.write(self.module, as_tuple(example_input), path, options)

    def export_c(
        self, example_input: Tensor, folder: str | os.PathLike[str], name: str = "model"
    ) -> list[Path]:
        """Convert, and write C for a device; see :meth:`ConvertedModule.export_c`.

        Raises:
            ValueError: This is no TINPU wrapper, or an operation has no form in C.
        """
        return self.convert().export_c(example_input, folder, name)
