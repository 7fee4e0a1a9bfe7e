"""Train, calibrate and deploy quantized CNNs for integer-only hardware.

``edgeailite.xnn`` is the kit that models and training loops are written with,
``edgeailite.quantization`` the engine, ``edgeailite.models`` the model zoo.
"""

from edgeailite._torchvision import define_missing_operators

# Before anything that may import torchvision: torchmetrics and timm do as well.
define_missing_operators()

from edgeailite import xnn  # noqa: E402

__version__ = "0.1.0"

__all__ = ["__version__", "xnn"]
