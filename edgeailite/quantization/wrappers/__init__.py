"""The modules users touch: schedules, arguments, defaults. They only call the engine's stages."""

from edgeailite.quantization.wrappers.converted import ConvertedModule, TinyMLConvertedModule
from edgeailite.quantization.wrappers.fx import PTCFxModule, PTQFxModule, QATFxModule
from edgeailite.quantization.wrappers.pact2 import (
    QuantCalibrateModule,
    QuantTestModule,
    QuantTrainModule,
)
from edgeailite.quantization.wrappers.quant_module import QuantModule
from edgeailite.quantization.wrappers.tinyml import (
    GenericTinyMLPTQFxModule,
    GenericTinyMLQATFxModule,
    TINPUTinyMLPTQFxModule,
    TINPUTinyMLQATFxModule,
    TinyMLQuantFxBaseModule,
)

__all__ = [
    "ConvertedModule",
    "GenericTinyMLPTQFxModule",
    "GenericTinyMLQATFxModule",
    "PTCFxModule",
    "PTQFxModule",
    "QATFxModule",
    "QuantCalibrateModule",
    "QuantModule",
    "QuantTestModule",
    "QuantTrainModule",
    "TINPUTinyMLPTQFxModule",
    "TINPUTinyMLQATFxModule",
    "TinyMLConvertedModule",
    "TinyMLQuantFxBaseModule",
]
