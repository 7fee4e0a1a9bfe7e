"""The first version of the documented interface; see ``edgeailite.xnn``."""

from edgeai_torchmodelopt.v1 import xnn

__all__ = ["xnn"]
