"""What makes the suite faster and changes no test."""

from __future__ import annotations

import copy
import functools
import gc
import sys
from typing import Any

import torch
import torch.fx.config


def spare_the_collector() -> None:
    """Leave the imported modules' half a million objects out of every garbage collection."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def share_exporter_tables() -> None:
    """Make the tables of torch's exporter once a process, if the exporter is loaded."""
    _share_torchlib()
    _share_composite_operators()


def leave_out_traces() -> None:
    """Trace graphs without the lines of code that their nodes come from: a twelfth of an export.

    A test of files without them sets the flag back.
    """
    torch.fx.config.do_not_emit_stack_traces = True


def _share_torchlib() -> None:
    """Build the table of ONNX functions once; by itself each export takes 0.4 s for it."""
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


def _share_composite_operators() -> None:
    """Look for the composite operators once; by itself each export takes 0.15 s for it.

    Operators that are registered later are looked for again.
    """
    readers: list[Any] = [
        sys.modules.get(f"torch.export.{name}") for name in ("exported_program", "decomp_utils")
    ]
    if None in readers or hasattr(readers[0]._collect_all_valid_cia_ops, "found"):
        return
    collect, found = readers[0]._collect_all_valid_cia_ops, {}

    def collect_once() -> Any:
        names = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
        key = frozenset(names)
        if key not in found:
            found[key] = frozenset(collect())
        return found[key]

    collect_once.found = found  # type: ignore[attr-defined]
    for module in readers:
        module._collect_all_valid_cia_ops = collect_once
