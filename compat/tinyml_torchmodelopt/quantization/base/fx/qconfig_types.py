"""``edgeailite.quantization.prepare.tinyml_qconfig`` under its documented path."""

from edgeailite.quantization.prepare.tinyml_qconfig import TinyMLQConfigType, get_default_qconfig

__all__ = ["TinyMLQConfigType", "get_default_qconfig"]
