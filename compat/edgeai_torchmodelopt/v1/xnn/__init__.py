"""``edgeailite.xnn`` under the path ``edgeai_torchmodelopt.v1.xnn``."""

from edgeai_torchmodelopt.v1.xnn import layers, optim, quantization, quantize, utils

__all__ = ["layers", "optim", "quantization", "quantize", "utils"]
