"""QATFxModule and PTCFxModule: any preset, any configuration, on the one engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from edgeailite.quantization.methods.mixed_precision.bit_widths import BitWidths
from edgeailite.quantization.methods.training import TrainingMethods
from edgeailite.quantization.prepare.prepare import prepare
from edgeailite.quantization.prepare.qconfig import make_policy
from edgeailite.quantization.targets.registry import get_target
from edgeailite.quantization.wrappers.arguments import (
    make_fx_schedule,
    read_example_inputs,
    read_methods,
)
from edgeailite.quantization.wrappers.quant_module import QuantModule
from edgeailite.quantization.wrappers.schedule import Epochs


class QATFxModule(QuantModule):
    """Quantization-aware training with any preset: wrap the model, then train as ever.

    Args:
        model: Float model; it becomes part of the wrapper, in ``.module``, all its state-dict keys
            unchanged.
        *args: The same as `example_inputs`, one by one.
        qconfig_type: Grids of weights and activations: a :class:`QConfigType` or its name, a dict
            ``{'weight': {...}, 'activation': {...}}``, a :class:`QConfig`, or a ``QConfig`` or
            ``QConfigMapping`` of ``torch.ao.quantization``. None: ``WC8_AT8``.
        example_inputs: Input, or tuple of inputs, of the shape the model is used with. Needed only
            by models whose optional arguments are given; with it, a wrong shape is found here.
        example_kwargs: Inputs by name.
        is_qat: False: training mode only calibrates, as in :class:`PTCFxModule`.
        backend: ``'qnnpack'`` or ``'onednn'``; ``'x86'`` or ``'fbgemm'`` limit a preset's
            activations to 7 bits, for CPUs whose 8-bit kernels saturate.
        residual_bits: Bits of residual streams, 9 to 16: sums that norms and sums alone read, as in
            transformers. None: as all activations.
        total_epochs: Epochs of the training; it decides when batch norm and ranges freeze. Warns
            where an epoch more begins.
        num_batch_norm_update_epochs: Batch norm statistics learn for as many epochs. None: until
            epoch ``total_epochs // 2 - 1``. False: always. A calibration folds them as they are,
            and warns of a number above 0.
        num_observer_update_epochs: Activation ranges learn for as many epochs. None: until epoch
            ``total_epochs // 2 + 1``. False: always.
        bias_calibration_factor: Part of the difference between the means of the float and the
            quantized network behind a layer that each training batch adds to its bias; 0: none.
            None: the n-th batch adds ``max(1 / n, 0.01)`` of it, the mean over the batches. Costs a
            float pass per batch.
        leaf_modules: Paths or types of modules that cannot be traced; they stay in float.
        methods: Learned ranges, damping, distillation, freezing of oscillations; None: none.
        bit_widths: Bits of single layers, instead of the preset's: the result of
            :func:`~edgeailite.quantization.methods.mixed_precision.search_bit_widths`, the file
            it was saved to, or ``{bits: [module names]}``.
        steps_per_epoch: Training batches (calls in training mode) of an epoch, for loops that
            validate within an epoch. None: ``train()`` counts epochs: the first call begins one,
            and each further call after a training batch.
        verbose: Print when something freezes, and which layers have biases that do not fit.

    Raises:
        ValueError: `total_epochs` is missing, or an argument is outside of what it allows.
        TypeError: `qconfig_type` is of no accepted kind.
        TraceError: The model cannot be captured; the message names the place and the way out.

    Example:
        >>> model = QATFxModule(model, qconfig_type="WC8_AT8", total_epochs=10)
    """

    def __init__(
        self,
        model: nn.Module,
        *args: Any,
        qconfig_type: Any = None,
        example_inputs: Any = None,
        example_kwargs: Mapping[str, Any] | None = None,
        is_qat: bool = True,
        backend: str = "qnnpack",
        residual_bits: int | None = None,
        total_epochs: int = 0,
        num_batch_norm_update_epochs: Epochs = None,
        num_observer_update_epochs: Epochs = None,
        bias_calibration_factor: float | None = 0.0,
        leaf_modules: Iterable[str | type[nn.Module]] = (),
        methods: TrainingMethods | None = None,
        bit_widths: BitWidths | None = None,
        steps_per_epoch: int | None = None,
        verbose: bool = True,
    ) -> None:
        name = type(self).__name__
        methods = read_methods(name, methods, is_qat, bias_calibration_factor)
        counts = (total_epochs, num_batch_norm_update_epochs, num_observer_update_epochs)
        schedule = make_fx_schedule(name, is_qat, *counts, methods, steps_per_epoch)
        policy = methods.apply_to(make_policy(qconfig_type, backend, residual_bits))
        inputs = read_example_inputs(args, example_inputs, example_kwargs)
        target = get_target("onnx_runtime")
        weight = None if policy.qconfig is None else policy.qconfig.weight
        is_per_tensor = weight is not None and weight.granularity == "per_tensor"
        super().__init__(
            prepare(model, policy, target, inputs, leaf_modules, example_kwargs),
            schedule,
            methods,
            bit_widths,
            trains=is_qat,
            clip_weights=is_per_tensor and not is_qat,
            bias_rate=bias_calibration_factor,
            verbose=verbose,
        )


class PTCFxModule(QATFxModule):
    """Post-training calibration with any preset: run data through it in training mode.

    No labels, no gradients; batch norm is folded as it is, its statistics do not change. Where a
    weight has one scale per tensor, outliers that stretch it are clipped once, and named.

    Args:
        model: As in :class:`QATFxModule`; so are all other arguments.
        *args: The same as `example_inputs`, one by one.
        is_qat: True makes a :class:`QATFxModule` of it.
        total_epochs: Passes over the calibration images.
        num_batch_norm_update_epochs: As in :class:`QATFxModule`.
        num_observer_update_epochs: Ranges learn for as many epochs.
        bias_calibration_factor: As in :class:`QATFxModule`.
        **kwargs: As in :class:`QATFxModule`.

    Example:
        >>> model = PTCFxModule(model).calibrate(loader, num_batches=10)
    """

    def __init__(
        self,
        model: nn.Module,
        *args: Any,
        is_qat: bool = False,
        total_epochs: int = 2,
        num_batch_norm_update_epochs: Epochs = 0,
        num_observer_update_epochs: Epochs = 1,
        bias_calibration_factor: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            model,
            *args,
            is_qat=is_qat,
            total_epochs=total_epochs,
            num_batch_norm_update_epochs=num_batch_norm_update_epochs,
            num_observer_update_epochs=num_observer_update_epochs,
            bias_calibration_factor=bias_calibration_factor,
            **kwargs,
        )


PTQFxModule = PTCFxModule
