"""The quantization wrappers, under their documented name ``xnn.quantize``."""

from edgeailite.quantization.wrappers import (
    QuantCalibrateModule,
    QuantTestModule,
    QuantTrainModule,
)

__all__ = ["QuantCalibrateModule", "QuantTestModule", "QuantTrainModule"]
