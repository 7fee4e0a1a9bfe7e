"""``edgeailite.xnn.layers`` under the path ``edgeai_torchmodelopt.v1.xnn.layers``."""

from edgeailite.xnn.layers import *
from edgeailite.xnn.layers import __all__ as __all__
