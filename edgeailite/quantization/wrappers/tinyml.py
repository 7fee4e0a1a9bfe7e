"""Wrappers for microcontrollers: int8 for any CPU, and TI's NPU with offset, scale and shift."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeailite.quantization.export.export_format import ExportFormat
from edgeailite.quantization.export.formats import OnnxOptions
from edgeailite.quantization.methods.mixed_precision.qconfig_search import (
    apply_mixed_precision,
    search_as_told,
    without_search,
)
from edgeailite.quantization.methods.mixed_precision.result import MixedPrecision
from edgeailite.quantization.methods.training import TrainingMethods
from edgeailite.quantization.modules.layer import QuantLayer
from edgeailite.quantization.prepare.policy import Policy
from edgeailite.quantization.prepare.prepare import check_finite_weights
from edgeailite.quantization.prepare.target import Target
from edgeailite.quantization.prepare.tinyml_qconfig import (
    BIT_WIDTHS,
    make_tinyml_policy,
    weight_spec,
)
from edgeailite.quantization.targets.tinpu.target import Tinpu
from edgeailite.quantization.wrappers.converted import TinyMLConvertedModule, one_format
from edgeailite.quantization.wrappers.fx import Epoch, QATFxModule

FLOAT_OPS = ("qdq", "fb")
_EARLIER = ("qconfig_type", "example_inputs", "is_qat", "backend", "total_epochs")
_LATER = ("total_epochs", "qconfig_type", "example_inputs", "is_qat", "backend")


class TinyMLQuantFxBaseModule(QATFxModule):
    """What the microcontroller wrappers share; on its own, the generic int8 target.

    Args:
        model: Float model; it becomes part of the wrapper, in ``.module``.
        *args: ``qconfig_type, example_inputs, is_qat, backend, total_epochs`` in this order, or, if
            the first is a number, ``total_epochs, qconfig_type, example_inputs, is_qat, backend``.
        qconfig_type: Bits of the weights and more, see
            :class:`~edgeailite.quantization.TinyMLQConfigType`; None: 8 bits.
        example_inputs: Input of the shape the model is used with; with it, a wrong shape is found
            here.
        is_qat: False: training mode only calibrates.
        backend: As in :class:`QATFxModule`.
        total_epochs: Epochs of the training; it decides when batch norm freezes.
        num_batch_norm_update_epochs: Batch norm statistics learn for as many epochs. None: until
            half of the training. False: always.
        num_observer_update_epochs: Likewise for activation ranges.
        prepare_qdq: False: leave all in float, to run the same loop without quantization.
        bias_calibration_factor: Part of the difference of means that each batch corrects.
        verbose: Print when something freezes.
        float_ops: What the target computes in float: ``'fb'`` offsets that are not rounded,
            ``'qdq'`` the normalisation of the input. True: both. Neither runs on the accelerator.
        leaf_modules: Paths or types of modules that cannot be traced; they stay in float.
        methods: Learned ranges, damping, distillation; None: none of them.

    Raises:
        ValueError: An argument is outside of what it allows, or of what the target computes.
        TypeError: `qconfig_type` is of no accepted kind.
        TraceError: The model cannot be captured; the message names the place and the way out.

    Example:
        >>> model = TINPUTinyMLQATFxModule(model, total_epochs=10)
    """

    def __init__(
        self,
        model: nn.Module,
        *args: Any,
        qconfig_type: Any = None,
        example_inputs: Any = None,
        is_qat: bool = True,
        backend: str = "qnnpack",
        total_epochs: int = 0,
        num_batch_norm_update_epochs: Epoch = None,
        num_observer_update_epochs: Epoch = False,
        prepare_qdq: bool = True,
        bias_calibration_factor: float = 0.0,
        verbose: bool = True,
        float_ops: bool | Sequence[str] = False,
        leaf_modules: Iterable[str | type[nn.Module]] = (),
        methods: TrainingMethods | None = None,
    ) -> None:
        named: dict[str, Any] = {
            "qconfig_type": qconfig_type,
            "example_inputs": example_inputs,
            "is_qat": is_qat,
            "backend": backend,
            "total_epochs": total_epochs,
        }
        named |= _positional(args)
        self._prepare_qdq, self._float_ops = prepare_qdq, _read_float_ops(float_ops)
        if not named["is_qat"] and named["total_epochs"] == 0:
            named["total_epochs"] = 1
        super().__init__(
            model,
            num_batch_norm_update_epochs=num_batch_norm_update_epochs,
            num_observer_update_epochs=num_observer_update_epochs,
            bias_calibration_factor=bias_calibration_factor,
            leaf_modules=leaf_modules,
            methods=methods,
            verbose=verbose,
            **named,
        )
        # Hard weights from the middle of the training on.
        self.hard_epoch = max(named["total_epochs"] // 2, 1)

    def _policy(self, model: nn.Module, qconfig_type: Any, backend: str) -> Policy:
        given = getattr(qconfig_type, "qconfig_type", qconfig_type)
        if isinstance(given, Mapping) and given.get("auto_quantization"):
            qconfig_type = run_auto_quantization(model, given, type(self))
        policy = make_tinyml_policy(
            model, self._target(), qconfig_type, backend, "fb" in self._float_ops
        )
        return policy if self._prepare_qdq else Policy(None)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the original model; a backward pass is refused where it only calibrates."""
        refuse = self.training and not self.trains and torch.is_grad_enabled()
        output = super().forward(*args, **kwargs)
        return _without_backward(output) if refuse else output

    def train(self, mode: bool = True) -> TinyMLQuantFxBaseModule:
        """Training mode starts the next epoch of the schedules, that of soft weights included."""
        super().train(mode)
        softness = max(1.0 - self.epoch / self.hard_epoch, 0.0) if self.trains else 0.0
        for layer in self.module.modules():
            if isinstance(layer, QuantLayer) and layer.weight_quantizer.starts_soft:
                layer.weight_quantizer.softness = softness
        return self

    def convert(
        self,
        format: ExportFormat | str | None = None,
        *,
        model_qconfig_format: ExportFormat | str | None = None,
    ) -> TinyMLConvertedModule:
        """Make the integer graph of the model as it is now; this module does not change.

        Args:
            format: Default of :meth:`TinyMLConvertedModule.export`; None: the target's own.
            model_qconfig_format: The historical name of `format`.

        Raises:
            ValueError: A format that holds no integers or is another target's; two different
                formats; a weight or a range is NaN or infinite.
        """
        chosen = self._converted_format(one_format(format, model_qconfig_format))
        check_finite_weights(self.module)
        return TinyMLConvertedModule(self.target.convert(self.module), chosen)

    def _converted_format(self, name: ExportFormat | str | None) -> str:
        if not self._prepare_qdq:
            raise ValueError(
                "There are no integers: nothing is quantized in this wrapper (prepare_qdq=False). "
                "Wrap the model with prepare_qdq=True."
            )
        return super()._converted_format(name)

    def export(
        self,
        example_input: Tensor | tuple[Tensor, ...],
        path: str | os.PathLike[str],
        *,
        format: ExportFormat | str | None = None,
        model_qconfig_format: ExportFormat | str | None = None,
        opset_version: int | None = None,
        input_names: Sequence[str] | None = None,
        output_names: Sequence[str] | None = None,
        dynamic_batch: bool = True,
        simplify: bool | None = None,
        strict: bool = False,
    ) -> Path:
        """Write ONNX.

        Args:
            example_input: Input to trace with.
            path: File to write.
            format: Contents of the file, see :class:`ExportFormat`; None: the target's own
                integers.
            model_qconfig_format: The historical name of `format`.
            opset_version: As in :meth:`QuantModule.export`.
            input_names: As in :meth:`QuantModule.export`.
            output_names: As in :meth:`QuantModule.export`.
            dynamic_batch: As in :meth:`QuantModule.export`.
            simplify: As in :meth:`QuantModule.export`.
            strict: As in :meth:`QuantModule.export`.

        Raises:
            ValueError: A format that the target does not have, two different formats, an opset
                that cannot be written, or, with `strict`, an operation that the NPU does not
                compute.
        """
        options = OnnxOptions(opset_version, input_names, output_names, dynamic_batch, simplify)
        chosen = one_format(format, model_qconfig_format)
        return self._write(example_input, path, chosen, options, strict)

    @staticmethod
    def measure_stats(float_output: Tensor, quant_output: Tensor) -> dict[str, float]:
        """How far a quantized output is from the float one.

        Args:
            float_output: Any shape.
            quant_output: The same shape.

        Returns:
            ``snr_db`` and ``psnr_db`` (of mean square and of peak over the mean squared error,
            decibel), ``absmu_by_sigma`` (mean absolute error over the float output's standard
            deviation), and ``mean``, ``min``, ``max`` of the error.

        Raises:
            ValueError: The shapes differ, or there are no values.
        """
        return output_errors(float_output, quant_output)


def output_errors(reference: Tensor, output: Tensor) -> dict[str, float]:
    """See :meth:`TinyMLQuantFxBaseModule.measure_stats`."""
    if reference.shape != output.shape or not reference.numel():
        raise ValueError(
            f"The outputs have shapes {tuple(reference.shape)} and {tuple(output.shape)}; they "
            "must be the same, and not empty."
        )
    reference, error = reference.detach().double(), (output - reference).detach().double()
    power = error.square().mean().clamp_min(torch.finfo(torch.float64).tiny)
    sigma = reference.std(correction=0).clamp_min(torch.finfo(torch.float64).tiny)
    return {
        "snr_db": float(10 * torch.log10(reference.square().mean() / power)),
        "psnr_db": float(10 * torch.log10(reference.abs().max().square() / power)),
        "absmu_by_sigma": float(error.abs().mean() / sigma),
        "mean": float(error.mean()),
        "min": float(error.min()),
        "max": float(error.max()),
    }


class GenericTinyMLQATFxModule(TinyMLQuantFxBaseModule):
    """Quantization-aware training for any CPU with int8; see :class:`TinyMLQuantFxBaseModule`."""


class GenericTinyMLPTQFxModule(TinyMLQuantFxBaseModule):
    """Post-training quantization for any CPU with int8; see :class:`TinyMLQuantFxBaseModule`."""

    def __init__(self, model: nn.Module, *args: Any, is_qat: bool = False, **kwargs: Any) -> None:
        super().__init__(model, *args, is_qat=is_qat, **kwargs)


class TINPUTinyMLQATFxModule(TinyMLQuantFxBaseModule):
    """Quantization-aware training for TI's NPU: the simulation computes as it does.

    Args:
        model: Float model; it becomes part of the wrapper, in ``.module``.
        *args: As in :class:`TinyMLQuantFxBaseModule`.
        output_int: The converted model returns integers; False: real values. None: integers, unless
            `float_ops` has ``'qdq'``.
        **kwargs: As in :class:`TinyMLQuantFxBaseModule`.
    """

    def _target(self) -> Target:
        return Tinpu(input_multiplier_bits=None) if "qdq" in self._float_ops else Tinpu()

    def __init__(
        self, model: nn.Module, *args: Any, output_int: bool | None = None, **kwargs: Any
    ) -> None:
        super().__init__(model, *args, **kwargs)
        self.output_int = "qdq" not in self._float_ops if output_int is None else output_int

    def convert(
        self,
        format: ExportFormat | str | None = None,
        output_int: bool | None = None,
        *,
        model_qconfig_format: ExportFormat | str | None = None,
    ) -> TinyMLConvertedModule:
        """Make the integer graph of the model as it is now; this module does not change.

        Args:
            format: Default of :meth:`TinyMLConvertedModule.export`; None: ``TINPU_INT_MODEL``.
            output_int: Return the outputs' integers; False: real values. None: as the wrapper was
                told.
            model_qconfig_format: The historical name of `format`.

        Raises:
            ValueError: A format that holds no integers or is another target's; two different
                formats; a weight or a range is NaN or infinite; a layer's factor or sums have no
                form on the target.
        """
        chosen = self._converted_format(one_format(format, model_qconfig_format))
        check_finite_weights(self.module)
        integers = self.output_int if output_int is None else output_int
        graph = self.target.convert(self.module, integers)
        return TinyMLConvertedModule(graph, chosen)


class TINPUTinyMLPTQFxModule(TINPUTinyMLQATFxModule):
    """Post-training quantization for TI's NPU; see :class:`TINPUTinyMLQATFxModule`."""

    def __init__(self, model: nn.Module, *args: Any, is_qat: bool = False, **kwargs: Any) -> None:
        super().__init__(model, *args, is_qat=is_qat, **kwargs)


class _CalibratesOnly(torch.autograd.Function):
    """The identity; a backward pass is the user's mistake."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, _: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        raise RuntimeError(
            "A backward pass was asked for, but this wrapper only calibrates: post-training "
            "quantization has no gradients. Run the data through it without a loss, or wrap the "
            "model for quantization-aware training (is_qat=True)."
        )


def _without_backward(output: Any) -> Any:
    """The output, whose tensors refuse a backward pass with a clear error."""
    if isinstance(output, Tensor) and output.is_floating_point():
        return _CalibratesOnly.apply(output, torch.zeros((), requires_grad=True))
    if isinstance(output, dict):
        return type(output)((k, _without_backward(v)) for k, v in output.items())
    if isinstance(output, list | tuple) and not hasattr(output, "_fields"):
        return type(output)(_without_backward(v) for v in output)
    return output


def run_auto_quantization(
    model: nn.Module,
    qconfig_dict: Mapping[str, Any],
    wrapper_type: type[TinyMLQuantFxBaseModule] = TINPUTinyMLQATFxModule,
) -> dict[str, Any]:
    """Find the bits of each layer as a ``qconfig_type`` dict asks; prints a table.

    Args:
        model: Float model; not changed.
        qconfig_dict: See :func:`~edgeailite.quantization.methods.mixed_precision.search_as_told`;
            not changed.
        wrapper_type: The target; the search calibrates, whatever it is.

    Returns:
        A new dict without loaders, with ``weight.mixed_precision``: the ``qconfig_type`` to wrap
        with.

    Raises:
        ValueError: Data or goal is missing.
    """
    base = without_search(qconfig_dict)

    def make_wrapper(float_model: nn.Module, found: MixedPrecision) -> Any:
        qconfig_type = apply_mixed_precision(base, found.bits)
        return wrapper_type(float_model, qconfig_type=qconfig_type, is_qat=False, verbose=False)

    return search_as_told(
        model, qconfig_dict, make_wrapper, lambda _, bits: weight_spec(bits), BIT_WIDTHS
    )


def _positional(args: Sequence[Any]) -> dict[str, Any]:
    names = _LATER if args and type(args[0]) is int else _EARLIER
    if len(args) > len(names):
        raise TypeError(
            f"{len(args) + 1} positional arguments were given; allowed: the model and "
            f"{', '.join(names)}. Name the others."
        )
    return dict(zip(names, args, strict=False))


def _read_float_ops(given: bool | Sequence[str]) -> tuple[str, ...]:
    if isinstance(given, bool):
        return FLOAT_OPS if given else ()
    names = (given,) if isinstance(given, str) else tuple(given)
    if not set(names) <= set(FLOAT_OPS):
        raise ValueError(f"float_ops is {given!r}; allowed: False, True, or a list of 'qdq', 'fb'.")
    return names
