"""Quantization by its documented path; see ``edgeailite.quantization``."""

from edgeai_torchmodelopt.xmodelopt.quantization import v1, v2

__all__ = ["v1", "v2"]
