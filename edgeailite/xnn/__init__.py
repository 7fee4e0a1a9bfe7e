"""The module kit: layers, utilities, learning-rate schedules, and the quantization wrappers."""

from edgeailite.xnn import layers, optim, quantize, utils

# The documented snippets say both xnn.quantize and xnn.quantization.
quantization = quantize

__all__ = ["layers", "optim", "quantization", "quantize", "utils"]
