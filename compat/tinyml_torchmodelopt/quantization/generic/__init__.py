"""The Generic wrappers by their documented path."""

from edgeailite.quantization import GenericTinyMLPTQFxModule, GenericTinyMLQATFxModule

__all__ = ["GenericTinyMLPTQFxModule", "GenericTinyMLQATFxModule"]
