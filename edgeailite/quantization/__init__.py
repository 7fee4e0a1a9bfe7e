"""The quantization engine: capture, annotate, insert, train, calibrate, convert, export, verify."""

from typing import TYPE_CHECKING

from edgeailite._lazy import lazy_names

if TYPE_CHECKING:
    from edgeailite.quantization.arithmetic.presets import QConfigType
    from edgeailite.quantization.arithmetic.spec import BiasSpec, QConfig, QuantSpec
    from edgeailite.quantization.export.export_format import ExportFormat
    from edgeailite.quantization.graph.guard import TraceError
    from edgeailite.quantization.methods.training import TrainingMethods
    from edgeailite.quantization.prepare.tinyml_qconfig import TinyMLQConfigType
    from edgeailite.quantization.wrappers import (
        ConvertedModule,
        GenericTinyMLPTQFxModule,
        GenericTinyMLQATFxModule,
        PTCFxModule,
        PTQFxModule,
        QATFxModule,
        QuantCalibrateModule,
        QuantModule,
        QuantTestModule,
        QuantTrainModule,
        TINPUTinyMLPTQFxModule,
        TINPUTinyMLQATFxModule,
        TinyMLConvertedModule,
        TinyMLQuantFxBaseModule,
    )
else:
    # "import edgeailite" loads no more of the engine than the layers of the module kit need.
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            f"{__name__}.arithmetic.presets": ("QConfigType",),
            f"{__name__}.arithmetic.spec": ("BiasSpec", "QConfig", "QuantSpec"),
            f"{__name__}.export.export_format": ("ExportFormat",),
            f"{__name__}.graph.guard": ("TraceError",),
            f"{__name__}.methods.training": ("TrainingMethods",),
            f"{__name__}.prepare.tinyml_qconfig": ("TinyMLQConfigType",),
            f"{__name__}.wrappers.converted": ("ConvertedModule", "TinyMLConvertedModule"),
            f"{__name__}.wrappers.fx": ("PTCFxModule", "PTQFxModule", "QATFxModule"),
            f"{__name__}.wrappers.pact2": (
                "QuantCalibrateModule",
                "QuantTestModule",
                "QuantTrainModule",
            ),
            f"{__name__}.wrappers.quant_module": ("QuantModule",),
            f"{__name__}.wrappers.tinyml": (
                "GenericTinyMLPTQFxModule",
                "GenericTinyMLQATFxModule",
                "TINPUTinyMLPTQFxModule",
                "TINPUTinyMLQATFxModule",
                "TinyMLQuantFxBaseModule",
            ),
        },
        submodules=(
            "arithmetic",
            "export",
            "graph",
            "integer",
            "methods",
            "modules",
            "prepare",
            "report",
            "targets",
            "verify",
            "wrappers",
        ),
    )

__all__ = [
    "BiasSpec",
    "ConvertedModule",
    "ExportFormat",
    "GenericTinyMLPTQFxModule",
    "GenericTinyMLQATFxModule",
    "PTCFxModule",
    "PTQFxModule",
    "QATFxModule",
    "QConfig",
    "QConfigType",
    "QuantCalibrateModule",
    "QuantModule",
    "QuantSpec",
    "QuantTestModule",
    "QuantTrainModule",
    "TINPUTinyMLPTQFxModule",
    "TINPUTinyMLQATFxModule",
    "TinyMLConvertedModule",
    "TinyMLQConfigType",
    "TinyMLQuantFxBaseModule",
    "TraceError",
    "TrainingMethods",
]
