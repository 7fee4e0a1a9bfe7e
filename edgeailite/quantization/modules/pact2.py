"""PACT2, the historical activation quantizer, and markers that place or forbid quantizers."""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import nn

from edgeailite.quantization.arithmetic.spec import QuantSpec, RangeRule, Rounding
from edgeailite.quantization.graph.operations import KEEP_IN_FLOAT, QUANTIZE_HERE
from edgeailite.quantization.modules.activation import FakeQuantize


class PACT2(FakeQuantize):
    """Activation with a power-of-two range that statistics find, simulated on its integer grid.

    Args:
        inplace: Overwrite the input, as ``ReLU(inplace=True)`` does.
        signed: True: ``[-2^m, 2^m]``. False: ``[0, 2^m]``, a quantized ReLU. None: by the
            statistics.
        range_shrink_activations: Percent of values, per side, left outside of the range; 0: plain
            min and max.
        clip_range: ``(low, high)``: a fixed range, no statistics.
        power2_activation_range: Round the range up to a power of two.
        bitwidth_activations: Bits of an integer, 2 to 16.
        rounding: Rule for ties.
        range_rule: ``percentile`` or ``mse`` (the range with the least squared error).

    Raises:
        ValueError: An argument is outside of what it allows.

    Example:
        >>> pact = PACT2(signed=False, clip_range=(0, 4))
        >>> pact(torch.tensor([-1.0, 1.003, 9.0]))
        tensor([0.0000, 1.0000, 3.9844])
    """

    def __init__(
        self,
        inplace: bool = False,
        signed: bool | None = None,
        range_shrink_activations: float = 0.01,
        clip_range: tuple[float, float] | None = None,
        power2_activation_range: bool = True,
        bitwidth_activations: int = 8,
        rounding: Rounding = "half_even",
        range_rule: RangeRule = "percentile",
    ) -> None:
        if clip_range is not None and signed is None:
            signed = clip_range[0] < 0
        fixed = None if clip_range is None else (float(clip_range[0]), float(clip_range[1]))
        super().__init__(
            QuantSpec(
                bit_width=bitwidth_activations,
                signed=signed,
                power_of_two=power2_activation_range,
                rounding=rounding,
                range_rule=range_rule,
                range_shrink_percentile=range_shrink_activations,
                fixed_range=fixed,
            )
        )
        self.inplace = inplace

    @classmethod
    def from_spec(cls, spec: QuantSpec, bounds: tuple[float, float] | None = None) -> FakeQuantize:
        """Make a PACT2 for a symmetric spec (the historical scheme), else a FakeQuantize."""
        if not spec.symmetric:
            return FakeQuantize(spec, bounds)
        quantizer = cls()
        FakeQuantize.__init__(quantizer, spec, bounds)
        return quantizer


PAct2 = PACT2


class ReLU1(nn.Hardtanh):
    """Clip to ``[-1, 1]``."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__(-1.0, 1.0, inplace=inplace)


class QAct(nn.Identity):
    """Identity that asks for a quantizer at this place."""


class NoQAct(nn.Identity):
    """Identity that forbids a quantizer at this place: the value before it stays in float."""


QUANTIZE_HERE.register(modules=(QAct,))
KEEP_IN_FLOAT.register(modules=(NoQAct,))


def get_fixed_pact2_type(
    low: float, high: float, signed: bool | None = None, power2_activation_range: bool = True
) -> Callable[..., PACT2]:
    """Make a factory of PACT2 layers with the fixed range ``[low, high]``, for use as a layer type.

    Example:
        >>> layer = get_fixed_pact2_type(0.0, 6.0)(inplace=True)
    """
    return functools.partial(
        PACT2,
        signed=signed,
        clip_range=(low, high),
        power2_activation_range=power2_activation_range,
    )


def quantizers(model: nn.Module) -> dict[str, FakeQuantize]:
    """Activation quantizers of `model`, by path."""
    return {name: m for name, m in model.named_modules() if isinstance(m, FakeQuantize)}


def freeze_quant_range(model: nn.Module) -> None:
    """Stop the statistics of every quantizer in `model`; :func:`unfreeze_quant_range` undoes it."""
    for quantizer in quantizers(model).values():
        quantizer.observer_enabled = False


def unfreeze_quant_range(model: nn.Module) -> None:
    """Let the statistics of every quantizer go on, except where the spec fixes the range."""
    for quantizer in quantizers(model).values():
        quantizer.observer_enabled = quantizer.spec.fixed_range is None
