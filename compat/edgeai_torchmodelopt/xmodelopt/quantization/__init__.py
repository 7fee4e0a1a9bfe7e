"""Quantization by its documented path; see ``edgeailite.quantization``."""

from edgeai_torchmodelopt.xmodelopt.quantization import v1

__all__ = ["v1"]
