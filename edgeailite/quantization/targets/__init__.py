"""Hardware targets, one folder each; :data:`TARGETS` names them."""

from edgeailite.quantization.targets.registry import TARGETS, get_target, register_target

__all__ = ["TARGETS", "get_target", "register_target"]
