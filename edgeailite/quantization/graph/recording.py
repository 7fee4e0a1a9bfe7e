"""Forward hooks for a while: look at what modules read and give."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

# Called after each call of a module with the module, its positional arguments and its result, which
# it may replace by what it returns.
Hook = Callable[[nn.Module, tuple[Any, ...], Any], Any]


@contextmanager
def hooked(pairs: Iterable[tuple[nn.Module, Hook]]) -> Iterator[None]:
    """Register forward hooks and remove them at the end, after an error too.

    Args:
        pairs: Modules and their hooks, which are called in this order.
    """
    handles = []
    try:
        for module, hook in pairs:
            handles.append(module.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def results_kept(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[dict[str, Any]]:
    """Keep the last result of each module by its name.

    Args:
        modules: Names and modules.

    Yields:
        The results, in the order of the calls.
    """
    results: dict[str, Any] = {}

    def hook_of(name: str) -> Hook:
        return lambda _module, _args, result: results.__setitem__(name, result)

    with hooked((module, hook_of(name)) for name, module in modules):
        yield results
