"""Configurations by their documented path; see ``edgeailite.quantization.tinyml_qconfig``."""

from edgeailite.quantization.tinyml_qconfig import TinyMLQConfigType, get_default_qconfig

__all__ = ["TinyMLQConfigType", "get_default_qconfig"]
