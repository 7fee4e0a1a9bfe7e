"""The quantization engine: capture, annotate, insert, train, calibrate, convert, export, verify."""

from edgeailite.quantization.spec import BiasSpec, QConfig, QConfigType, QuantSpec
from edgeailite.quantization.wrappers import (
    ConvertedModule,
    PTCFxModule,
    PTQFxModule,
    QATFxModule,
    QuantCalibrateModule,
    QuantModule,
    QuantTestModule,
    QuantTrainModule,
)

__all__ = [
    "BiasSpec",
    "ConvertedModule",
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
]
