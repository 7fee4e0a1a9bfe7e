"""QATFxModule and PTCFxModule: any preset, any configuration, on the one engine."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from edgeailite.files.weights import load_weights
from edgeailite.quantization.methods.mixed_precision.bit_widths import BitWidths
from edgeailite.quantization.methods.training import TrainingMethods
from edgeailite.quantization.prepare.policy import Policy
from edgeailite.quantization.prepare.prepare import prepare
from edgeailite.quantization.prepare.qconfig import make_policy
from edgeailite.quantization.prepare.target import Target
from edgeailite.quantization.targets.registry import get_target
from edgeailite.quantization.wrappers.quant_module import QuantModule

Epoch = int | bool | None


def _freeze_epoch(name: str, given: Epoch, default: int | None) -> int | None:
    """The epoch at whose start something freezes: None is the default, False never."""
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


class QATFxModule(QuantModule):
    """Quantization-aware training with any preset: wrap the model, then train as ever.

    Args:
        model: Float model; it becomes part of the wrapper, in ``.module``, all its state-dict keys
            unchanged.
        *args: The same as `example_inputs`, one by one.
        qconfig_type: What is quantized to what: a :class:`QConfigType` or its name, a dict
            ``{'weight': {...}, 'activation': {...}}``, a :class:`QConfig`, or a ``QConfig`` or
            ``QConfigMapping`` of ``torch.ao.quantization``. None: ``WC8_AT8``.
        example_inputs: Input, or tuple of inputs, of the shape the model is used with. Needed only
            by models whose optional arguments are given; with it, a wrong shape is found here.
        example_kwargs: Inputs by name.
        is_qat: False: training mode only calibrates, as in :class:`PTCFxModule`.
        backend: ``'qnnpack'`` or ``'onednn'``; ``'x86'`` or ``'fbgemm'`` limit a preset's
            activations to 7 bits, for CPUs whose 8-bit kernels saturate.
        total_epochs: Epochs of the training; it decides when batch norm and ranges freeze.
        num_batch_norm_update_epochs: Batch norm statistics learn for as many epochs. None: until
            epoch ``total_epochs // 2 - 1``. False: always.
        num_observer_update_epochs: Activation ranges learn for as many epochs. None: until epoch
            ``total_epochs // 2 + 1``. False: always.
        bias_calibration_factor: Part of the difference between the means of the float and the
            quantized output that each training batch adds to a layer's bias; 0: none. Costs a float
            pass per batch.
        leaf_modules: Paths or types of modules that cannot be traced; they stay in float.
        methods: Learned ranges, damping, distillation; None: none of them.
        bit_widths: Bits of single layers, instead of the preset's: what
            :func:`~edgeailite.quantization.methods.mixed_precision.search_bit_widths`
            found, the file it was saved to, or ``{bits: [module names]}``.
        verbose: Print when something freezes.

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
        total_epochs: int = 0,
        num_batch_norm_update_epochs: Epoch = None,
        num_observer_update_epochs: Epoch = None,
        bias_calibration_factor: float = 0.0,
        leaf_modules: Iterable[str | type[nn.Module]] = (),
        methods: TrainingMethods | None = None,
        bit_widths: BitWidths | None = None,
        verbose: bool = True,
    ) -> None:
        if methods is not None and not is_qat:
            raise ValueError(
                f"methods was given, but this {type(self).__name__} does not train: learned "
                "ranges, damping and distillation need gradients. Leave methods out, or wrap for "
                "quantization-aware training."
            )
        methods = methods or TrainingMethods()
        policy = methods.apply_to(self._policy(model, qconfig_type, backend))
        if isinstance(total_epochs, bool) or not isinstance(total_epochs, int) or total_epochs < 1:
            raise ValueError(
                f"total_epochs is {total_epochs!r}; {type(self).__name__} needs the number of "
                "epochs you will train (1 or more): it decides when batch norm and ranges freeze."
            )
        if not 0.0 <= bias_calibration_factor <= 1.0:
            raise ValueError(
                f"bias_calibration_factor is {bias_calibration_factor!r}; allowed: 0 (off) to 1."
            )
        half = total_epochs // 2
        batch_norm_epoch = _freeze_epoch(
            "num_batch_norm_update_epochs", num_batch_norm_update_epochs, half - 1
        )
        range_epoch = _freeze_epoch(
            "num_observer_update_epochs", num_observer_update_epochs, half + 1
        )
        super().__init__(
            prepare(
                model,
                policy,
                self._target(),
                _example_inputs(args, example_inputs, example_kwargs),
                leaf_modules,
                example_kwargs,
            ),
            batch_norm_epoch=batch_norm_epoch if is_qat else None,  # calibration folds them
            range_epoch=range_epoch,
            bias_rate=bias_calibration_factor,
            methods=methods,
            total_epochs=total_epochs,
            bit_widths=bit_widths,
            verbose=verbose,
        )
        self.trains = is_qat

    def _target(self) -> Target:
        """The hardware."""
        return get_target("onnx_runtime")

    def _policy(self, model: nn.Module, qconfig_type: Any, backend: str) -> Policy:
        """What is quantized to what."""
        return make_policy(qconfig_type, backend)

    def load_weights(
        self, source: Mapping[str, Tensor] | str | os.PathLike[str], **options: Any
    ) -> QATFxModule:
        """Load float or quantized weights into ``.module`` and print what was loaded and what not.

        Args:
            source: A state dict, or the path of a checkpoint.
            **options: As in :func:`~edgeailite.files.weights.load_weights`.
        """
        weights = source if isinstance(source, Mapping) else os.fspath(source)
        load_weights(self.module, weights, **options)
        return self


class PTCFxModule(QATFxModule):
    """Post-training calibration with any preset: run data through it in training mode.

    No labels, no gradients; batch norm is folded as it is, its statistics do not change.

    Args:
        model: As in :class:`QATFxModule`; so are all other arguments.
        *args: The same as `example_inputs`, one by one.
        is_qat: True makes a :class:`QATFxModule` of it.
        total_epochs: Calls of ``train()`` that will be made.
        num_batch_norm_update_epochs: Without effect unless `is_qat`; a number above 0 warns.
        num_observer_update_epochs: Ranges learn for as many epochs.
        bias_calibration_factor: Part of the difference of means that one batch corrects.
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
        num_batch_norm_update_epochs: Epoch = 0,
        num_observer_update_epochs: Epoch = 1,
        bias_calibration_factor: float = 0.01,
        **kwargs: Any,
    ) -> None:
        if num_batch_norm_update_epochs != 0 and not is_qat:
            warnings.warn(
                f"num_batch_norm_update_epochs={num_batch_norm_update_epochs!r} has no effect: "
                "post-training calibration folds batch norm as it was trained.",
                stacklevel=2,
            )
            num_batch_norm_update_epochs = 0
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


def _example_inputs(
    args: Sequence[Any], example_inputs: Any, example_kwargs: Mapping[str, Any] | None
) -> tuple[Any, ...] | None:
    if args and example_inputs is not None:
        raise ValueError(
            f"{len(args)} positional inputs and example_inputs were given; give the inputs once."
        )
    given = args or example_inputs
    if given is None or (isinstance(given, tuple | list) and not given):
        return () if example_kwargs else None
    return tuple(given) if isinstance(given, tuple | list) else (given,)
