"""Bits of each layer: sensitivity, the choice for a budget, the search."""

from edgeailite.quantization.methods.mixed_precision.bit_widths import (
    BitWidths,
    apply_bit_widths,
    read_bit_widths,
)
from edgeailite.quantization.methods.mixed_precision.choice import choose_bit_widths
from edgeailite.quantization.methods.mixed_precision.qconfig_search import (
    apply_mixed_precision,
    search_as_told,
)
from edgeailite.quantization.methods.mixed_precision.result import LayerSensitivity, MixedPrecision
from edgeailite.quantization.methods.mixed_precision.search import search_bit_widths
from edgeailite.quantization.methods.mixed_precision.sensitivity import (
    BIT_WIDTHS,
    layer_sensitivity,
)

__all__ = [
    "BIT_WIDTHS",
    "BitWidths",
    "LayerSensitivity",
    "MixedPrecision",
    "apply_bit_widths",
    "apply_mixed_precision",
    "choose_bit_widths",
    "layer_sensitivity",
    "read_bit_widths",
    "search_as_told",
    "search_bit_widths",
]
