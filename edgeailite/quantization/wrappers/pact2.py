"""QuantTrainModule, QuantCalibrateModule, QuantTestModule: the power-of-two PACT2 scheme."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from edgeailite.quantization.arithmetic.presets import get_preset
from edgeailite.quantization.arithmetic.spec import BiasSpec, QConfig, Rounding
from edgeailite.quantization.methods.mixed_precision.bit_widths import BitWidths
from edgeailite.quantization.methods.training import TrainingMethods
from edgeailite.quantization.prepare.policy import Policy
from edgeailite.quantization.prepare.prepare import prepare
from edgeailite.quantization.report import describe
from edgeailite.quantization.targets.registry import get_target
from edgeailite.quantization.wrappers.quant_module import QuantModule, Wrapper

CONSTRAIN_BIAS = {
    "NONE": BiasSpec(32, "none"),
    "SATURATE": BiasSpec(16, "saturate"),
    "REDUCE_WEIGHT_SCALE": BiasSpec(16, "reduce_weight_scale"),
}


def _qconfig(
    bitwidth_weights: int,
    bitwidth_activations: int,
    per_channel_q: bool | str,
    histogram_range: bool,
    range_shrink_weights: float | None,
    range_shrink_activations: float | None,
    power2_weight_range: bool | None,
    power2_activation_range: bool | None,
    constrain_bias: str | None,
    rounding: Rounding,
    range_rule: str | None,
) -> QConfig:
    """The PACT2 preset with a wrapper's arguments applied; errors name the argument."""
    if per_channel_q not in (False, True, "all"):
        raise ValueError(
            f"per_channel_q is {per_channel_q!r}; allowed: False, True (depthwise only), 'all'."
        )
    # Per channel, a fine weight step would leave a clamped bias next to nothing.
    default = "REDUCE_WEIGHT_SCALE" if per_channel_q else "SATURATE"
    rule = default if constrain_bias is None else constrain_bias
    if rule not in CONSTRAIN_BIAS:
        raise ValueError(
            f"constrain_bias is {constrain_bias!r}; allowed: None, "
            f"{', '.join(map(repr, CONSTRAIN_BIAS))}."
        )
    preset = get_preset("PACT2")
    assert preset is not None
    assert preset.weight is not None
    assert preset.activation is not None
    shrink = 0.01 if range_shrink_activations is None else range_shrink_activations
    activations = {
        "bit_width": bitwidth_activations,
        "power_of_two": power2_activation_range is not False,
        "rounding": rounding,
        "range_rule": range_rule or ("percentile" if histogram_range else "min_max"),
        "range_shrink_percentile": shrink,
    }
    weights = {
        "bit_width": bitwidth_weights,
        "power_of_two": power2_weight_range is not False,
        "granularity": "per_channel" if per_channel_q else "per_tensor",
        "range_rule": "percentile" if range_shrink_weights else "min_max",
        "range_shrink_percentile": range_shrink_weights or 0.0,
    }
    return QConfig(
        weight=_with(preset.weight, weights, "weights"),
        activation=_with(preset.activation, activations, "activations"),
        bias=replace(CONSTRAIN_BIAS[rule], rounding=rounding),
        per_channel_depthwise_only=per_channel_q is True,
    )


def _with(spec: Any, changes: dict[str, Any], what: str) -> Any:
    try:
        return replace(spec, **changes)
    except ValueError as error:
        message = str(error).replace("range_shrink_percentile", f"range_shrink_{what}")
        raise ValueError(message.replace("bit_width", f"bitwidth_{what}")) from None


class _PACT2Module(QuantModule):
    """Arguments that the three wrappers share; see :class:`QuantTrainModule` for their meaning."""

    takes_methods = False

    def __init__(
        self,
        module: nn.Module,
        dummy_input: Tensor | tuple[Any, ...],
        *args: Any,
        bitwidth_weights: int = 8,
        bitwidth_activations: int = 8,
        per_channel_q: bool | str = False,
        histogram_range: bool = True,
        bias_calibration: bool = False,
        constrain_weights: bool | None = None,
        range_shrink_weights: float | None = None,
        range_shrink_activations: float | None = None,
        power2_weight_range: bool | None = None,
        power2_activation_range: bool | None = None,
        constrain_bias: str | None = None,
        quantize_in: bool = True,
        quantize_out: bool = True,
        verbose_mode: bool = False,
        total_epochs: int = 0,
        rounding: Rounding = "half_even",
        range_rule: str | None = None,
        leaf_modules: Iterable[str | type[nn.Module]] = (),
        lr_calib: float = 0.05,
        methods: TrainingMethods | None = None,
        bit_widths: BitWidths | None = None,
    ) -> None:
        qconfig = _qconfig(
            bitwidth_weights,
            bitwidth_activations,
            per_channel_q,
            histogram_range,
            range_shrink_weights,
            range_shrink_activations,
            power2_weight_range,
            power2_activation_range,
            constrain_bias,
            rounding,
            range_rule,
        )
        examples = (
            *(dummy_input if isinstance(dummy_input, tuple | list) else (dummy_input,)),
            *args,
        )
        policy = Policy(qconfig, quantize_in=quantize_in, quantize_out=quantize_out)
        # One set of options serves the three wrappers; two of them do not train.
        if methods is None or not self.takes_methods:
            methods = TrainingMethods()
        super().__init__(
            prepare(module, methods.apply_to(policy), get_target("tidl"), examples, leaf_modules),
            batch_norm_epoch=total_epochs // 2 - 1 if total_epochs else None,
            range_epoch=total_epochs // 2 + 1 if total_epochs else None,
            clip_weights=not per_channel_q if constrain_weights is None else constrain_weights,
            bias_rate=lr_calib if bias_calibration else 0.0,
            methods=methods,
            total_epochs=total_epochs,
            bit_widths=bit_widths,
        )
        if verbose_mode:
            print(describe(self.module))  # noqa: T201


class QuantTrainModule(_PACT2Module):
    """Quantization-aware training: wrap the model, then train as ever with a smaller learning rate.

    Args:
        module: Float model; it becomes part of the wrapper, in ``.module``, all its state-dict
            keys unchanged.
        dummy_input: Input (or tuple of inputs) of the shape the model is used with, batch included.
        *args: Further inputs of the model.
        bitwidth_weights: Bits of a weight, 2 to 16.
        bitwidth_activations: Bits of an activation, 2 to 16.
        per_channel_q: One weight scale per tensor (False), per channel in depthwise convolutions
            (True), or per channel everywhere (``'all'``).
        histogram_range: Activation ranges leave ``range_shrink_activations`` percent outside;
            False: plain min and max.
        bias_calibration: Also correct biases in each training step (a float pass per step).
        constrain_weights: Clip outlying weights once, before the first iteration. None: unless per
            channel.
        range_shrink_weights: Percent of weights left outside of the weight's range. None: 0.
        range_shrink_activations: Percent of activations left outside, per side. None: 0.01.
        power2_weight_range: Weight scales are powers of two. None: True.
        power2_activation_range: Activation scales are powers of two. None: True.
        constrain_bias: ``'SATURATE'`` (the bias is clamped to 16 bits of the accumulator),
            ``'REDUCE_WEIGHT_SCALE'`` (the weight's step grows until the bias fits 16 bits) or
            ``'NONE'`` (32 bits). None: saturate, but reduce where weights are per channel.
        quantize_in: Quantize the network's input.
        quantize_out: Quantize the network's last quantizable values.
        verbose_mode: Print what is quantized to what.
        total_epochs: Epochs of the training: batch norm statistics freeze at the start of epoch
            ``total_epochs // 2 - 1`` (counted from 0 by calls of ``train()``), ranges at
            ``total_epochs // 2 + 1``.
        rounding: ``'half_even'``: ONNX's and ONNX Runtime's. ``'half_up'``: TIDL's.
        range_rule: ``'percentile'``, ``'min_max'`` or ``'mse'`` for activation ranges; None: by
            `histogram_range`.
        leaf_modules: Paths or types of modules that cannot be traced; they stay in float.
        lr_calib: Rate of `bias_calibration`.
        methods: Learned ranges, damping, distillation; None: none of them.
        bit_widths: Bits of single layers, instead of `bitwidth_weights`: what
            :func:`~edgeailite.quantization.methods.mixed_precision.search_bit_widths`
            found, the file it was saved to, or ``{bits: [module names]}``.

    Raises:
        ValueError: `total_epochs` is missing, an argument is outside of what it allows, the dummy
            input does not fit the model, or a weight is NaN.
        TraceError: The model cannot be captured; the message names the place and the way out.

    Example:
        >>> model = QuantTrainModule(model, dummy_input=torch.rand(1, 3, 224, 224), total_epochs=10)
    """

    takes_methods = True

    def __init__(
        self, module: nn.Module, dummy_input: Any, *args: Any, total_epochs: int = 0, **kwargs: Any
    ) -> None:
        if isinstance(total_epochs, bool) or not isinstance(total_epochs, int) or total_epochs < 1:
            raise ValueError(
                f"total_epochs is {total_epochs!r}; QuantTrainModule needs the number of epochs "
                "you will train (1 or more): it decides when batch norm and ranges freeze."
            )
        super().__init__(module, dummy_input, *args, total_epochs=total_epochs, **kwargs)


class QuantCalibrateModule(_PACT2Module):
    """Post-training calibration: run data through the wrapper in training mode.

    No labels, no gradients. Per batch a float pass records each layer's mean output per channel, a
    quantized pass updates the ranges, and the biases move towards the float means. Batch norm
    statistics do not change.

    Args:
        module: As in :class:`QuantTrainModule`; so are all other arguments, but `total_epochs` is
            not needed.
        dummy_input: Input of the shape the model is used with.
        *args: Further inputs of the model.
        bias_calibration: Correct biases; False only collects ranges.
        lr_calib: Part of the difference that one batch corrects.
        **kwargs: As in :class:`QuantTrainModule`.
    """

    trains = False

    def __init__(
        self,
        module: nn.Module,
        dummy_input: Any,
        *args: Any,
        bias_calibration: bool = True,
        lr_calib: float = 0.05,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            module,
            dummy_input,
            *args,
            bias_calibration=bias_calibration,
            lr_calib=lr_calib,
            **kwargs,
        )


class QuantTestModule(_PACT2Module):
    """Evaluate a quantized checkpoint: load it into ``.module``; there is no training mode.

    Args:
        module: As in :class:`QuantTrainModule`; so are all other arguments, but `total_epochs` is
            not needed.
        dummy_input: Input of the shape the model is used with.
        *args: Further inputs of the model.
        **kwargs: As in :class:`QuantTrainModule`.
    """

    def __init__(self, module: nn.Module, dummy_input: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(module, dummy_input, *args, **kwargs)
        self.eval()

    def train(self, mode: bool = True) -> QuantTestModule:
        """Stays in evaluation mode, and says so if training mode was asked for."""
        if mode:
            warnings.warn(
                "QuantTestModule only evaluates; wrap with QuantTrainModule to train.", stacklevel=2
            )
        super().train(False)
        return self

    def calibrate(
        self: Wrapper,
        data: Iterable[Any],
        num_batches: int | None = None,
        quality: str | Sequence[str] | None = None,
    ) -> Wrapper:
        """Refuse to calibrate.

        Raises:
            RuntimeError: Always: calibrate with QuantCalibrateModule.
        """
        raise RuntimeError("QuantTestModule only evaluates; calibrate with QuantCalibrateModule.")
