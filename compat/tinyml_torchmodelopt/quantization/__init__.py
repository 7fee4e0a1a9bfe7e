"""The microcontroller wrappers by their documented path; see ``edgeailite.quantization``."""

from edgeailite.quantization import (
    ExportFormat as TinyMLModelQConfigFormat,
)
from edgeailite.quantization import (
    GenericTinyMLPTQFxModule,
    GenericTinyMLQATFxModule,
    TINPUTinyMLPTQFxModule,
    TINPUTinyMLQATFxModule,
    TinyMLQConfigType,
    TinyMLQuantFxBaseModule,
)

__all__ = [
    "GenericTinyMLPTQFxModule",
    "GenericTinyMLQATFxModule",
    "TINPUTinyMLPTQFxModule",
    "TINPUTinyMLQATFxModule",
    "TinyMLModelQConfigFormat",
    "TinyMLQConfigType",
    "TinyMLQuantFxBaseModule",
]
