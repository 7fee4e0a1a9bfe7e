"""``edgeailite.xnn.utils`` under the path ``edgeai_torchmodelopt.xnn.utils``."""

from edgeailite.xnn.utils import *
from edgeailite.xnn.utils import __all__ as __all__
