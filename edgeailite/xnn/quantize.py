"""The quantization wrappers, under their documented name ``xnn.quantize``."""

import contextlib

with contextlib.suppress(ImportError):  # interim: until the wrappers are committed
    from edgeailite.quantization.wrappers import (
        QuantCalibrateModule,
        QuantTestModule,
        QuantTrainModule,
    )

__all__ = ["QuantCalibrateModule", "QuantTestModule", "QuantTrainModule"]
