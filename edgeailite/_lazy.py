"""Names of a package that are imported when they are first used (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = ["lazy_names"]


def lazy_names(
    package: str, names: Mapping[str, Iterable[str]], submodules: Iterable[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the functions ``__getattr__`` and ``__dir__`` of a module with lazy names.

    Args:
        package: The module's ``__name__``.
        names: Full name of a module -> its names that `package` offers.
        submodules: Submodules of `package` that are reachable as attributes without an import.

    Returns:
        ``__getattr__`` and ``__dir__``.
    """
    homes = {name: module for module, offered in names.items() for name in offered}
    inner = frozenset(submodules)

    def __getattr__(name: str) -> Any:
        if name in inner:
            return importlib.import_module(f"{package}.{name}")
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes, *inner})

    return __getattr__, __dir__
