"""The fx wrappers by their documented path; see ``edgeailite.quantization``."""

from edgeailite.quantization import *
from edgeailite.quantization import __all__ as __all__
