"""The TINPU wrappers by their documented path."""

from edgeailite.quantization import TINPUTinyMLPTQFxModule, TINPUTinyMLQATFxModule

__all__ = ["TINPUTinyMLPTQFxModule", "TINPUTinyMLQATFxModule"]
