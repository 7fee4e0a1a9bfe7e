"""The base wrapper by its documented path."""

from edgeailite.quantization import TinyMLQuantFxBaseModule

__all__ = ["TinyMLQuantFxBaseModule"]
