"""The modules users touch: schedules, arguments, defaults. They only call the engine's stages."""

from typing import TYPE_CHECKING

from edgeailite._lazy import lazy_names

if TYPE_CHECKING:
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
else:
    # A wrapper loads with what it needs, and no other family of wrappers.
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            f"{__name__}.converted": ("ConvertedModule", "TinyMLConvertedModule"),
            f"{__name__}.fx": ("PTCFxModule", "PTQFxModule", "QATFxModule"),
            f"{__name__}.pact2": ("QuantCalibrateModule", "QuantTestModule", "QuantTrainModule"),
            f"{__name__}.quant_module": ("QuantModule",),
            f"{__name__}.tinyml": (
                "GenericTinyMLPTQFxModule",
                "GenericTinyMLQATFxModule",
                "TINPUTinyMLPTQFxModule",
                "TINPUTinyMLQATFxModule",
                "TinyMLQuantFxBaseModule",
            ),
        },
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
