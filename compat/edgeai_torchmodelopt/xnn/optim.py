"""``edgeailite.xnn.optim`` under the path ``edgeai_torchmodelopt.xnn.optim``."""

from edgeailite.xnn.optim import *
from edgeailite.xnn.optim import __all__ as __all__
