"""The targets by name: one line for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeailite.quantization.targets.onnx_runtime.target import OnnxRuntime
from edgeailite.quantization.targets.tidl.target import Tidl
from edgeailite.quantization.targets.tinpu.target import Tinpu

if TYPE_CHECKING:
    from edgeailite.quantization.prepare.target import Target

TARGETS: dict[str, Target] = {}


def register_target(target: Target) -> None:
    """Add a target.

    Raises:
        ValueError: A target of this name exists.
    """
    if target.name in TARGETS:
        raise ValueError(f"There is a target '{target.name}' already.")
    TARGETS[target.name] = target


def get_target(name: str) -> Target:
    """Look a target up by its name.

    Raises:
        ValueError: There is none; the message lists those there are.
    """
    if name not in TARGETS:
        raise ValueError(f"There is no target {name!r}; allowed: {', '.join(TARGETS)}.")
    return TARGETS[name]


register_target(OnnxRuntime())
register_target(Tidl())
register_target(Tinpu())
