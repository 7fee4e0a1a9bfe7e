"""``edgeailite.xnn`` under the path ``edgeai_torchmodelopt.xnn``."""

from edgeai_torchmodelopt.xnn import layers, optim, quantization, quantize, utils

__all__ = ["layers", "optim", "quantization", "quantize", "utils"]
