"""Train, calibrate and deploy quantized CNNs for integer-only hardware.

``edgeailite.xnn`` is the kit that models and training loops are written with,
``edgeailite.quantization`` the engine, ``edgeailite.models`` the model zoo.
"""

from typing import TYPE_CHECKING

from edgeailite._lazy import lazy_names
from edgeailite._torchvision import define_missing_operators

# Before anything that may import torchvision: torchmetrics and timm do as well.
define_missing_operators()

from edgeailite import xnn  # noqa: E402

if TYPE_CHECKING:
    from edgeailite.quantization.graph.guard import TraceError
else:
    __getattr__, __dir__ = lazy_names(
        __name__, {f"{__name__}.quantization.graph.guard": ("TraceError",)}
    )

__version__ = "0.1.0"

__all__ = ["TraceError", "__version__", "xnn"]
