"""Configurations by their documented path; see ``edgeailite.quantization.targets.tinpu.qconfig``."""

from edgeailite.quantization.targets.tinpu.qconfig import TinyMLQConfigType, get_default_qconfig

__all__ = ["TinyMLQConfigType", "get_default_qconfig"]
