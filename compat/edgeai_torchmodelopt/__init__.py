"""The documented import paths of edgeai_torchmodelopt; everything is edgeailite's."""

from edgeai_torchmodelopt import v1, xmodelopt, xnn

__all__ = ["v1", "xmodelopt", "xnn"]
