"""``edgeailite.quantization.targets.tinpu.qconfig`` under its documented path."""

from edgeailite.quantization.targets.tinpu.qconfig import TinyMLQConfigType, get_default_qconfig

__all__ = ["TinyMLQConfigType", "get_default_qconfig"]
