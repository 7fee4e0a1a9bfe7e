"""The wrappers of the PACT2 scheme; see ``edgeailite.xnn.quantize``."""

from edgeailite.xnn.quantize import *
from edgeailite.xnn.quantize import __all__ as __all__
