"""Biases between the quantizers of a layer's input and output, and the room that they need."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgeailite.quantization.arithmetic.weights import fake_quantize_bias

if TYPE_CHECKING:
    from edgeailite.quantization.arithmetic.spec import BiasSpec
    from edgeailite.quantization.modules.activation import FakeQuantize


def min_weight_scale(
    rows: Tensor,
    gain: Tensor | None,
    bias: Tensor | None,
    spec: BiasSpec,
    input_quantizer: FakeQuantize | None,
) -> Tensor | None:
    """Finest weight scales with which bias and accumulator fit, shape ``(C_out,)``; None: any.

    Args:
        rows: Weights of one output channel a row, shape ``(C_out, n)``.
        gain: Factor of each row, or None.
        bias: Shape ``(C_out,)``, or None.
        spec: Of the bias.
        input_quantizer: Of the layer's input.
    """
    finest = None
    if input_quantizer is None:
        return None
    if bias is not None and spec.rule != "saturate" and not spec.is_float:
        finest = bias.detach().abs() / (input_quantizer.qparams().scale * (spec.limit - 1))
    if spec.accumulator_bits is not None:
        # Half of the room: the rest is for what rounding adds, and the bias.
        room = 1 << (spec.accumulator_bits - 1)
        sums = torch.linalg.vector_norm(rows, ord=1, dim=1)
        sums = sums if gain is None else sums * gain.abs()
        limit = sums * (1 << input_quantizer.spec.bit_width) / room
        finest = limit if finest is None else torch.maximum(finest, limit)
    return finest


def fake_quantized_bias(
    bias: Tensor | None,
    weight_scale: Tensor,
    spec: BiasSpec,
    input_quantizer: FakeQuantize | None,
    output_quantizer: FakeQuantize | None,
) -> Tensor | None:
    """Put a bias on its grid, with half of the output's scale added before one that rounds down.

    Args:
        bias: Folded bias, shape ``(C_out,)``, or None.
        weight_scale: Scale of the folded weight, shape ``(C_out,)``.
        spec: Of the bias.
        input_quantizer: Of the layer's input; None leaves the bias in float.
        output_quantizer: The one behind, if it rounds down.

    Returns:
        Bias in real units; differentiable; None if there is nothing to add.
    """
    if bias is None and output_quantizer is None:
        return None
    if input_quantizer is None or spec.is_float:
        if output_quantizer is None:
            return bias
        return float_offset(bias, torch.ones_like(weight_scale), output_quantizer)
    scale = input_quantizer.qparams().scale * weight_scale
    if bias is not None:
        bias = fake_quantize_bias(bias, scale, spec.limit, spec.rounding)
    if output_quantizer is None:
        return bias
    half = torch.floor(output_quantizer.qparams().scale.double() / 2 / scale.double())
    added = (half * scale.double()).float()
    return added if bias is None else bias + added


def float_offset(
    bias: Tensor | None, scale: Tensor, output_quantizer: FakeQuantize | None
) -> Tensor:
    """``(b + s_y / 2) / s_w``: bias and half of the output's scale; float32, ``(C_out,)``."""
    real = torch.zeros_like(scale) if bias is None else bias
    if output_quantizer is not None:
        real = real.double() + output_quantizer.qparams().scale.double() / 2
    return (real / scale.double()).float()
