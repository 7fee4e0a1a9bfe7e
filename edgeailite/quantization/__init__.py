"""The quantization engine: capture, annotate, insert, train, calibrate, convert, export, verify."""

from edgeailite.quantization.export.formats import ExportFormat
from edgeailite.quantization.spec import BiasSpec, QConfig, QConfigType, QuantSpec
from edgeailite.quantization.tinyml_qconfig import TinyMLQConfigType
from edgeailite.quantization.training_methods import TrainingMethods
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
    "TrainingMethods",
]
