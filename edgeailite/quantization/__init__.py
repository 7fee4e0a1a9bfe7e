"""The quantization engine: capture, annotate, insert, train, calibrate, convert, export, verify."""

from edgeailite.quantization.arithmetic.presets import QConfigType
from edgeailite.quantization.arithmetic.spec import BiasSpec, QConfig, QuantSpec
from edgeailite.quantization.export.formats import ExportFormat
from edgeailite.quantization.methods.training import TrainingMethods
from edgeailite.quantization.targets.tinpu.qconfig import TinyMLQConfigType
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
