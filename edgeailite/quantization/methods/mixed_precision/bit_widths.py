"""Bits of single layers in a prepared model."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeailite.quantization.methods.mixed_precision.result import MixedPrecision
from edgeailite.quantization.modules.layer_calls import LayerCall, layer_calls, output_quantizer

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel

BitWidths = MixedPrecision | str | os.PathLike | Mapping[int, Sequence[str]]


def read_bit_widths(given: BitWidths) -> MixedPrecision:
    """Read the argument ``bit_widths`` of a wrapper.

    Args:
        given: A choice, the file that it was saved to, or ``{bits: [module names]}`` for weights.

    Raises:
        ValueError: The file holds something else.
    """
    if isinstance(given, MixedPrecision):
        return given
    if isinstance(given, Mapping):
        return MixedPrecision({name: int(bits) for bits, names in given.items() for name in names})
    return MixedPrecision.load(Path(given))


def apply_bit_widths(model: GraphModel, given: BitWidths) -> list[str]:
    """Give layers their bits; up to four, a weight's range is that of least squared error.

    The bias of a layer gains what its weight and its input gain, up to 32 bits: it keeps its range.
    Checkpoints hold these bits.

    Args:
        model: Prepared model.
        given: See :func:`read_bit_widths`.

    Returns:
        Paths of the layers.

    Raises:
        ValueError: A name is no layer's, or a number of bits is none that grids have.
    """
    found = read_bit_widths(given)
    calls = {call.path: call for call in layer_calls(model)}
    before = {name: _bits_of_products(call) for name, call in calls.items()}
    for name, bits in found.chosen.items():
        if name not in calls:
            near = ", ".join(difflib.get_close_matches(name, calls, 3, 0.0))
            raise ValueError(
                f"bit_widths names '{name}', which is no quantized layer of the model; the nearest "
                f"are: {near}."
            )
        calls[name].layer.choose_bits(bits)
        output = output_quantizer(model, calls[name]) if found.activations else None
        if output is not None and output.spec.fixed_range is None:
            output.choose_bits(bits)
    for name, call in calls.items():
        layer, gained = call.layer, _bits_of_products(call) - before[name]
        if gained > 0:
            bias_bits = min(layer.bias_spec.bit_width + gained, 32)
            layer.choose_bits(layer.weight_quantizer.spec.bit_width, bias_bits)
    return list(found.chosen)


def _bits_of_products(call: LayerCall) -> int:
    quantizer = call.input_quantizer
    input_bits = 0 if quantizer is None else quantizer.spec.bit_width
    return call.layer.weight_quantizer.spec.bit_width + input_bits
