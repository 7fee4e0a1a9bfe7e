"""QuantTrainModule, QuantCalibrateModule, QuantTestModule: the power-of-two PACT2 scheme."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn

from torch import Tensor, nn

from edgeailite.quantization.arithmetic.presets import get_preset
from edgeailite.quantization.arithmetic.spec import (
    BiasSpec,
    QConfig,
    QuantSpec,
    RangeRule,
    Rounding,
)
from edgeailite.quantization.graph.model import GraphModel
from edgeailite.quantization.methods.mixed_precision.bit_widths import BitWidths
from edgeailite.quantization.methods.training import TrainingMethods
from edgeailite.quantization.prepare.policy import Policy
from edgeailite.quantization.prepare.prepare import prepare
from edgeailite.quantization.targets.registry import get_target
from edgeailite.quantization.wrappers.arguments import as_inputs, check_rate, warn_user
from edgeailite.quantization.wrappers.quant_module import QuantModule
from edgeailite.quantization.wrappers.schedule import Schedule, make_schedule

if TYPE_CHECKING:
    from typing_extensions import Self

CONSTRAIN_BIAS = {
    "NONE": BiasSpec(32, "none"),
    "SATURATE": BiasSpec(16, "saturate"),
    "REDUCE_WEIGHT_SCALE": BiasSpec(16, "reduce_weight_scale"),
}


def _preset() -> tuple[QuantSpec, QuantSpec]:
    """Return the PACT2 grids of weights and activations."""
    preset = get_preset("PACT2")
    assert preset is not None
    assert preset.weight is not None
    assert preset.activation is not None
    return preset.weight, preset.activation


def _weight_spec(bit_width: int, power_of_two: bool | None, shrink: float | None) -> QuantSpec:
    changes = {
        "bit_width": bit_width,
        "power_of_two": power_of_two is not False,
        "range_rule": "percentile" if shrink else "min_max",
        "range_shrink_percentile": shrink or 0.0,
    }
    return _changed(_preset()[0], changes, "weights")


def _activation_spec(bit_width: int, power_of_two: bool | None, rounding: Rounding) -> QuantSpec:
    changes = {
        "bit_width": bit_width,
        "power_of_two": power_of_two is not False,
        "rounding": rounding,
    }
    return _changed(_preset()[1], changes, "activations")


def _with_range(
    spec: QuantSpec, histogram_range: bool, range_rule: RangeRule | None, shrink: float | None
) -> QuantSpec:
    """Return the spec of activations with the rule that finds their ranges."""
    rule = range_rule or ("percentile" if histogram_range else "min_max")
    if shrink and rule in ("min_max", "mse"):
        warn_user(
            f"range_shrink_activations={shrink!r} has no effect: activation ranges are those of "
            f"rule {rule!r}. Leave it out, or choose histogram_range=True, range_rule=None."
        )
    changes = {
        "range_rule": rule,
        "range_shrink_percentile": 0.01 if shrink is None else shrink,
    }
    return _changed(spec, changes, "activations")


def _changed(spec: QuantSpec, changes: dict[str, Any], role: str) -> QuantSpec:
    """Return the changed spec; errors name the wrapper's argument."""
    try:
        return replace(spec, **changes)
    except ValueError as error:
        message = str(error).replace("range_shrink_percentile", f"range_shrink_{role}")
        raise ValueError(message.replace("bit_width", f"bitwidth_{role}")) from None


def _bias_spec(constrain_bias: str | None, weight: QuantSpec, activation: QuantSpec) -> BiasSpec:
    """Return the grid of biases; by default they have the bits of a product, 16 at least."""
    if constrain_bias is None:
        bits = min(max(weight.bit_width + activation.bit_width, 16), 32)
        return BiasSpec(bits, "reduce_weight_scale", activation.rounding)
    if constrain_bias not in CONSTRAIN_BIAS:
        raise ValueError(
            f"constrain_bias is {constrain_bias!r}; allowed: None, "
            f"{', '.join(map(repr, CONSTRAIN_BIAS))}."
        )
    return replace(CONSTRAIN_BIAS[constrain_bias], rounding=activation.rounding)


def _policy(
    weight: QuantSpec,
    activation: QuantSpec,
    per_channel_q: bool | str,
    constrain_bias: str | None,
    quantize_in: bool,
    quantize_out: bool,
) -> Policy:
    if per_channel_q not in (False, True, "all"):
        raise ValueError(
            f"per_channel_q is {per_channel_q!r}; allowed: False, True (depthwise only), 'all'."
        )
    qconfig = QConfig(
        weight=replace(weight, granularity="per_channel" if per_channel_q else "per_tensor"),
        activation=activation,
        bias=_bias_spec(constrain_bias, weight, activation),
        per_channel_depthwise_only=per_channel_q is True,
    )
    return Policy(qconfig, quantize_in=quantize_in, quantize_out=quantize_out)


def _print_description(model: GraphModel) -> None:
    # Reports are not needed to train.
    from edgeailite.quantization.report.build import describe

    print(describe(model))  # noqa: T201


class _PACT2Module(QuantModule):
    """Arguments that the three wrappers share; see :class:`QuantTrainModule` for their meaning."""

    role: ClassVar[Literal["train", "calibrate", "test"]]

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
        range_rule: RangeRule | None = None,
        leaf_modules: Iterable[str | type[nn.Module]] = (),
        lr_calib: float | None = None,
        methods: TrainingMethods | None = None,
        bit_widths: BitWidths | None = None,
        steps_per_epoch: int | None = None,
    ) -> None:
        methods, rate = self._methods(methods, bias_calibration, lr_calib)
        schedule = self._schedule(total_epochs, steps_per_epoch, methods)
        weight = _weight_spec(bitwidth_weights, power2_weight_range, range_shrink_weights)
        activation = _activation_spec(bitwidth_activations, power2_activation_range, rounding)
        values = _with_range(activation, histogram_range, range_rule, range_shrink_activations)
        policy = _policy(weight, values, per_channel_q, constrain_bias, quantize_in, quantize_out)
        inputs = (*as_inputs(dummy_input), *args)
        graph = prepare(module, methods.apply_to(policy), get_target("tidl"), inputs, leaf_modules)
        clip = not per_channel_q if constrain_weights is None else constrain_weights
        super().__init__(graph, schedule, methods, bit_widths, clip_weights=clip, bias_rate=rate)
        if verbose_mode:
            _print_description(graph)

    @classmethod
    def _methods(
        cls, methods: TrainingMethods | None, bias_calibration: bool, lr_calib: float | None
    ) -> tuple[TrainingMethods, float | None]:
        """Return methods and rate of the bias correction; warn of idle options."""
        check_rate("lr_calib", lr_calib)
        plain = TrainingMethods()
        if cls.role != "train" and methods not in (None, plain):
            warn_user(
                f"methods={methods!r} has no effect: {cls.__name__} does not train. Leave it out, "
                "or wrap with QuantTrainModule."
            )
            methods = None
        if cls.role != "test" and lr_calib is not None and not bias_calibration:
            warn_user(
                f"lr_calib={lr_calib!r} has no effect without bias_calibration=True: biases are "
                "not corrected. Leave it out, or ask for bias_calibration."
            )
        return methods or plain, lr_calib if bias_calibration else 0.0

    @classmethod
    def _schedule(
        cls, total_epochs: int, steps_per_epoch: int | None, methods: TrainingMethods
    ) -> Schedule:
        """Return the schedule; warn where there is none to count batches for."""
        if cls.role == "train" or total_epochs:
            return make_schedule(
                cls.__name__,
                total_epochs,
                damping=methods.damping,
                steps_per_epoch=steps_per_epoch,
                freeze_oscillations=methods.freeze_oscillations,
            )
        if cls.role == "calibrate" and steps_per_epoch is not None:
            warn_user(
                f"steps_per_epoch={steps_per_epoch!r} has no effect without total_epochs: nothing "
                "freezes. Leave it out, or give total_epochs."
            )
        return Schedule()


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
        range_shrink_activations: Percent of activations left outside, per side. None: 0.01. Warns
            where another rule finds the ranges.
        power2_weight_range: Weight scales are powers of two. None: True.
        power2_activation_range: Activation scales are powers of two. None: True.
        constrain_bias: ``'SATURATE'`` (the bias is clamped to 16 bits of the accumulator),
            ``'REDUCE_WEIGHT_SCALE'`` (the weight's scale grows until the bias fits 16 bits) or
            ``'NONE'`` (32 bits). None: the weight's scale grows until the bias fits the bits of a
            product: 16, more where weights and activations together have more. Prints which layers
            it concerns.
        quantize_in: Quantize the network's input.
        quantize_out: Quantize the network's last quantizable values.
        verbose_mode: Print the grid of each weight and activation.
        total_epochs: Epochs of the training: batch norm statistics freeze at the start of epoch
            ``total_epochs // 2 - 1`` (counted from 0), ranges at ``total_epochs // 2 + 1``. Warns
            where an epoch more begins.
        rounding: ``'half_even'``: ONNX's and ONNX Runtime's. ``'half_up'``: TIDL's.
        range_rule: ``'percentile'``, ``'min_max'`` or ``'mse'`` for activation ranges; None: by
            `histogram_range`.
        leaf_modules: Paths or types of modules that cannot be traced; they stay in float.
        lr_calib: Part of the difference that one batch of `bias_calibration` corrects, 0 to 1;
            warns without it. None: the n-th batch ``max(1 / n, 0.01)`` of it, the mean over the
            batches.
        methods: Learned ranges, damping, distillation, freezing of oscillations; None: none.
        bit_widths: Bits of single layers, instead of `bitwidth_weights`: the result of
            :func:`~edgeailite.quantization.methods.mixed_precision.search_bit_widths`, the file
            it was saved to, or ``{bits: [module names]}``.
        steps_per_epoch: Training batches (calls in training mode) of an epoch, for loops that
            validate within an epoch. None: ``train()`` counts epochs: the first call begins one,
            and each further call after a training batch.

    Raises:
        ValueError: `total_epochs` is missing, an argument is outside of what it allows, the dummy
            input does not fit the model, or a weight is NaN.
        TraceError: The model cannot be captured; the message names the place and the way out.

    Example:
        >>> model = QuantTrainModule(model, dummy_input=torch.rand(1, 3, 224, 224), total_epochs=10)
    """

    role = "train"


class QuantCalibrateModule(_PACT2Module):
    """Post-training calibration: run data through the wrapper in training mode.

    No labels, no gradients. Per batch a float pass records each layer's mean output per channel, a
    quantized pass updates the ranges, and the biases move towards the float means. Batch norm
    statistics do not change.

    One set of options serves the three wrappers: `total_epochs` is not needed (with it, ranges
    freeze as in training), and `methods` warns, as it has no effect.

    Args:
        module: As in :class:`QuantTrainModule`; so are all other arguments.
        dummy_input: Input of the shape the model is used with.
        *args: Further inputs of the model.
        bias_calibration: Correct biases; False only collects ranges.
        lr_calib: As in :class:`QuantTrainModule`.
        **kwargs: As in :class:`QuantTrainModule`.
    """

    role = "calibrate"

    def __init__(
        self,
        module: nn.Module,
        dummy_input: Any,
        *args: Any,
        bias_calibration: bool = True,
        lr_calib: float | None = None,
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
        self.trains = False


class QuantTestModule(_PACT2Module):
    """Evaluate a quantized checkpoint: load it into ``.module``; there is no training mode.

    One set of options serves the three wrappers. Those of training and calibration have no effect
    here: `histogram_range`, `range_shrink_activations`, `range_rule`, `bias_calibration`,
    `lr_calib`, `constrain_weights`, `total_epochs`, `steps_per_epoch`, and `methods`, which warns.

    Args:
        module: As in :class:`QuantTrainModule`; so are all other arguments.
        dummy_input: Input of the shape the model is used with.
        *args: Further inputs of the model.
        **kwargs: As in :class:`QuantTrainModule`.
    """

    role = "test"

    def __init__(self, module: nn.Module, dummy_input: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(module, dummy_input, *args, **kwargs)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, and say so if training mode was asked for."""
        if mode:
            warnings.warn(
                "QuantTestModule only evaluates; wrap with QuantTrainModule to train.", stacklevel=2
            )
        super().train(False)
        return self

    def _check_calibration(self) -> NoReturn:
        """Refuse to calibrate."""
        raise RuntimeError("QuantTestModule only evaluates; calibrate with QuantCalibrateModule.")
