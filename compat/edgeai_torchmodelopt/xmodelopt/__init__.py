"""Model optimization by its documented path; see ``edgeailite.quantization``."""

from edgeai_torchmodelopt.xmodelopt import quantization

__all__ = ["quantization"]
