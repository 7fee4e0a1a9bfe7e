"""Wrappers for microcontrollers: int8 for any CPU, and TI's NPU with offset, scale and shift."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from edgeailite.quantization.export.export_format import ExportFormat
from edgeailite.quantization.methods.mixed_precision.qconfig_search import (
    apply_mixed_precision,
    search_as_told,
    without_search,
)
from edgeailite.quantization.methods.mixed_precision.result import MixedPrecision
from edgeailite.quantization.methods.training import TrainingMethods
from edgeailite.quantization.prepare.policy import Policy
from edgeailite.quantization.prepare.prepare import prepare
from edgeailite.quantization.prepare.target import Target
from edgeailite.quantization.prepare.tinyml_qconfig import (
    BIT_WIDTHS,
    make_tinyml_policy,
    weight_spec,
)
from edgeailite.quantization.targets.onnx_runtime.target import OnnxRuntime
from edgeailite.quantization.targets.tinpu.target import Tinpu
from edgeailite.quantization.wrappers.arguments import (
    make_fx_schedule,
    read_example_inputs,
    read_methods,
)
from edgeailite.quantization.wrappers.converted import TinyMLConvertedModule, convert_model
from edgeailite.quantization.wrappers.exporting import TinyMLExporter, one_format
from edgeailite.quantization.wrappers.quant_module import QuantModule
from edgeailite.quantization.wrappers.schedule import Epochs

FLOAT_OPS = ("qdq", "fb")
_EARLIER = ("qconfig_type", "example_inputs", "is_qat", "backend", "total_epochs")
_LATER = ("total_epochs", "qconfig_type", "example_inputs", "is_qat", "backend")


class TinyMLQuantFxBaseModule(TinyMLExporter, QuantModule):
    """Base of the microcontroller wrappers; on its own, the generic int8 target.

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
        total_epochs: Epochs of the training; it decides when batch norm freezes. Warns where an
            epoch more begins.
        num_batch_norm_update_epochs: Batch norm statistics learn for as many epochs. None: until
            half of the training. False: always.
        num_observer_update_epochs: Likewise for activation ranges.
        prepare_qdq: False: leave all in float, to run the same loop without quantization.
        bias_calibration_factor: As in :class:`QATFxModule`.
        verbose: Print when something freezes, and which layers have biases that do not fit.
        float_ops: Operations that stay in float: ``'fb'``: offsets, which are not rounded;
            ``'qdq'``: the normalization of the input (the generic target has none: no effect).
            True: both. Neither runs on the accelerator.
        leaf_modules: Paths or types of modules that cannot be traced; they stay in float.
        methods: Learned ranges, damping, distillation, freezing of oscillations; None: none.
        steps_per_epoch: As in :class:`QATFxModule`.
        target: Hardware whose integers are simulated; None: any CPU with int8.

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
        num_batch_norm_update_epochs: Epochs = None,
        num_observer_update_epochs: Epochs = False,
        prepare_qdq: bool = True,
        bias_calibration_factor: float | None = 0.0,
        verbose: bool = True,
        float_ops: bool | Sequence[str] = False,
        leaf_modules: Iterable[str | type[nn.Module]] = (),
        methods: TrainingMethods | None = None,
        steps_per_epoch: int | None = None,
        target: Target | None = None,
    ) -> None:
        named = (qconfig_type, example_inputs, is_qat, backend, total_epochs)
        qconfig_type, example_inputs, is_qat, backend, total_epochs = _in_order(args, named)
        total_epochs = total_epochs if is_qat else total_epochs or 1
        in_float = read_float_ops(float_ops)
        name, target = type(self).__name__, target or OnnxRuntime(writes_tables=True)
        methods = read_methods(name, methods, is_qat, bias_calibration_factor)
        counts = (total_epochs, num_batch_norm_update_epochs, num_observer_update_epochs)
        schedule = make_fx_schedule(name, is_qat, *counts, methods, steps_per_epoch)
        # Weights that start soft are on their grid from the middle of the training on.
        schedule = replace(schedule, hard_epoch=max(total_epochs // 2, 1))
        qconfig_type = _searched(model, qconfig_type, type(self))
        policy = make_tinyml_policy(model, target, qconfig_type, backend, "fb" in in_float)
        policy = methods.apply_to(policy if prepare_qdq else Policy(None))
        inputs = read_example_inputs((), example_inputs)
        graph = prepare(model, policy, target, inputs, leaf_modules)
        rate = bias_calibration_factor
        super().__init__(graph, schedule, methods, trains=is_qat, bias_rate=rate, verbose=verbose)
        self.prepare_qdq = prepare_qdq

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the original model; a backward pass is refused where it only calibrates."""
        refuse = self.training and not self.trains and torch.is_grad_enabled()
        output = super().forward(*args, **kwargs)
        return _without_backward(output) if refuse else output

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
                formats; a weight or a range is NaN or infinite, or a range has never seen data.
        """
        return self._convert(one_format(format, model_qconfig_format))

    def _convert(
        self, format: ExportFormat | str | None, integer_outputs: bool | None = None
    ) -> TinyMLConvertedModule:
        if not self.prepare_qdq:
            raise ValueError(
                "There are no integers: nothing is quantized in this wrapper (prepare_qdq=False). "
                "Wrap the model with prepare_qdq=True."
            )
        self._leave()
        return TinyMLConvertedModule(*convert_model(self.module, format, integer_outputs))

    @staticmethod
    def measure_stats(float_output: Tensor, quant_output: Tensor) -> dict[str, float]:
        """Measure the error of a quantized output.

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
    """Measure an error, see :meth:`TinyMLQuantFxBaseModule.measure_stats`."""
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


class _PostTraining(TinyMLQuantFxBaseModule):
    """Defaults of post-training quantization, in front of a class that trains.

    Args:
        model: Float model.
        *args: As in :class:`TinyMLQuantFxBaseModule`.
        is_qat: True: it trains.
        bias_calibration_factor: As in :class:`QATFxModule`; by default the mean over the batches.
        **kwargs: As of the class behind.
    """

    def __init__(
        self,
        model: nn.Module,
        *args: Any,
        is_qat: bool = False,
        bias_calibration_factor: float | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs["bias_calibration_factor"] = bias_calibration_factor
        super().__init__(model, *args, is_qat=is_qat, **kwargs)


class GenericTinyMLPTQFxModule(_PostTraining):
    """Post-training quantization for any CPU with int8; see :class:`TinyMLQuantFxBaseModule`."""


class TINPUTinyMLQATFxModule(TinyMLQuantFxBaseModule):
    """Quantization-aware training for TI's NPU: the simulation computes as it does.

    Args:
        model: Float model; it becomes part of the wrapper, in ``.module``.
        *args: As in :class:`TinyMLQuantFxBaseModule`.
        output_int: The converted model returns integers; False: real values. None: integers, unless
            `float_ops` has ``'qdq'``.
        float_ops: As in :class:`TinyMLQuantFxBaseModule`.
        **kwargs: As in :class:`TinyMLQuantFxBaseModule`.
    """

    def __init__(
        self,
        model: nn.Module,
        *args: Any,
        output_int: bool | None = None,
        float_ops: bool | Sequence[str] = False,
        **kwargs: Any,
    ) -> None:
        in_float = read_float_ops(float_ops)
        target = Tinpu(input_multiplier_bits=None) if "qdq" in in_float else Tinpu()
        super().__init__(model, *args, float_ops=float_ops, target=target, **kwargs)
        self.output_int = "qdq" not in in_float if output_int is None else output_int

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
                formats; a weight or a range is NaN or infinite, or a range has never seen data; a
                layer's factor or sums have no form on the target.
        """
        chosen = one_format(format, model_qconfig_format)
        return self._convert(chosen, self.output_int if output_int is None else output_int)


class TINPUTinyMLPTQFxModule(_PostTraining, TINPUTinyMLQATFxModule):
    """Post-training quantization for TI's NPU; see :class:`TINPUTinyMLQATFxModule`."""


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


def _searched(
    model: nn.Module, qconfig_type: Any, wrapper_type: type[TinyMLQuantFxBaseModule]
) -> Any:
    """Return the configuration with the bits that a search found, if it asks for one."""
    given = getattr(qconfig_type, "qconfig_type", qconfig_type)
    if isinstance(given, Mapping) and given.get("auto_quantization"):
        return run_auto_quantization(model, given, wrapper_type)
    return qconfig_type


def _in_order(args: Sequence[Any], named: Sequence[Any]) -> Iterable[Any]:
    """Return the arguments in the order of ``_EARLIER``; `args` may have that of ``_LATER``."""
    names = _LATER if args and type(args[0]) is int else _EARLIER
    if len(args) > len(names):
        raise TypeError(
            f"{len(args) + 1} positional arguments were given; allowed: the model and "
            f"{', '.join(names)}. Name the others."
        )
    positional = dict(zip(names, args, strict=False))
    return {**dict(zip(_EARLIER, named, strict=True)), **positional}.values()


def read_float_ops(given: bool | Sequence[str]) -> tuple[str, ...]:
    """Return the names of the operations that stay in float.

    Raises:
        ValueError: There is no such operation.
    """
    if isinstance(given, bool):
        return FLOAT_OPS if given else ()
    names = (given,) if isinstance(given, str) else tuple(given)
    if not set(names) <= set(FLOAT_OPS):
        raise ValueError(f"float_ops is {given!r}; allowed: False, True, or a list of 'qdq', 'fb'.")
    return names
