"""The quantization wrappers, under their documented name ``xnn.quantize``."""

from typing import TYPE_CHECKING

from edgeailite._lazy import lazy_names

if TYPE_CHECKING:
    from edgeailite.quantization.wrappers.pact2 import (
        QuantCalibrateModule,
        QuantTestModule,
        QuantTrainModule,
    )
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "edgeailite.quantization.wrappers.pact2": (
                "QuantCalibrateModule",
                "QuantTestModule",
                "QuantTrainModule",
            )
        },
    )

__all__ = ["QuantCalibrateModule", "QuantTestModule", "QuantTrainModule"]
