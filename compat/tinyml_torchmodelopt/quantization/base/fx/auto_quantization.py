"""``edgeailite.quantization.methods.mixed_precision`` under its documented path."""

from edgeailite.quantization.methods.mixed_precision import apply_mixed_precision
from edgeailite.quantization.wrappers.tinyml import run_auto_quantization

__all__ = ["apply_mixed_precision", "run_auto_quantization"]
