"""``edgeailite.xnn.quantize`` under the path ``edgeai_torchmodelopt.v1.xnn.quantization``."""

from edgeailite.xnn.quantize import *
from edgeailite.xnn.quantize import __all__ as __all__
