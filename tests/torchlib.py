"""Torch's table of ONNX functions, built once: by itself each export takes 0.4 s to build it."""

from __future__ import annotations

import copy
import functools
import sys
from typing import Any


def share_torchlib() -> None:
    """Let all exports of this process start from one table, if torch's exporter is loaded."""
    module: Any = sys.modules.get("torch.onnx._internal.exporter._registration")
    if module is None or hasattr(module.ONNXRegistry.from_torchlib, "built"):
        return
    build = functools.cache(module.ONNXRegistry.from_torchlib)

    def from_torchlib(*args: Any, **kwargs: Any) -> Any:
        registry = copy.copy(build(*args, **kwargs))
        registry.functions = {name: list(found) for name, found in registry.functions.items()}
        return registry

    from_torchlib.built = build  # type: ignore[attr-defined]
    module.ONNXRegistry.from_torchlib = staticmethod(from_torchlib)
