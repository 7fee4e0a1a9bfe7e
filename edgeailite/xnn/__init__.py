"""The module kit: layers, utilities, learning-rate schedules, and the quantization wrappers."""

import sys

from edgeailite.xnn import layers, optim, quantize, utils

# The documented snippets say both xnn.quantize and xnn.quantization: one module, two names.
quantization = quantize
sys.modules[f"{__name__}.quantization"] = quantize

__all__ = ["layers", "optim", "quantization", "quantize", "utils"]
