"""What makes the suite faster and changes no test."""

from __future__ import annotations

import copy
import functools
import gc
import sys
from typing import Any


def spare_the_collector() -> None:
    """Leave the imported modules' half a million objects out of every garbage collection."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def share_torchlib() -> None:
    """Build torch's table of ONNX functions once a process, if torch's exporter is loaded.

    By itself each export takes 0.4 s to build it.
    """
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
    spare_the_collector()
