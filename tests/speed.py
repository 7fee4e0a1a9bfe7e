"""What makes the suite faster and changes no test."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import sys
from collections.abc import Callable, Iterator
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
    _share_overrides()


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


def _share_overrides() -> None:
    """Make the kernels that each export gives to the composite operators once.

    By itself each export makes 10,000 of them, in 0.1 s. They are made again for an operator that
    has other kernels of its own by now.
    """
    module: Any = sys.modules.get("torch.export.exported_program")
    if module is None or hasattr(module._override_composite_implicit_decomp, "made"):
        return
    override, made = module._override_composite_implicit_decomp, {}
    fakes = sys.modules["torch._subclasses.fake_impls"].op_implementations_dict  # type: ignore

    def make(operator: Any, decomposition: Any) -> tuple[Any, ...]:
        before, fake = operator.py_kernels.copy(), fakes.get(operator)
        # torch writes its own decomposition of an operator as a new partial each time.
        function = getattr(getattr(decomposition, "func", None), "__code__", decomposition)
        known = made.get((operator, function))
        if known is None or known[:2] != (before, fake):
            with override({operator: decomposition}):
                known = before, fake, operator.py_kernels.copy(), fakes.get(operator)
            if fake is not None:
                fakes[operator] = fake
            made[operator, function] = known
        return known

    @contextlib.contextmanager
    def share(decompositions: dict[Any, Callable[..., Any]]) -> Iterator[None]:
        overridden = {op: make(op, function) for op, function in decompositions.items()}
        for operator, (_, _, kernels, fake) in overridden.items():
            operator.py_kernels.update(kernels)
            operator._dispatch_cache.clear()
            fakes[operator] = fake
        try:
            yield
        finally:
            for operator, (before, *_) in overridden.items():
                operator.py_kernels.clear()
                operator.py_kernels.update(before)
                operator._dispatch_cache.clear()
                fakes.pop(operator, None)

    share.made = made  # type: ignore[attr-defined]
    module._override_composite_implicit_decomp = share
