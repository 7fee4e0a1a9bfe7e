"""Twins: modules of another class in the place, and with the state, of a model's own."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

Twin = TypeVar("Twin", bound=nn.Module)


def make_twin(module: nn.Module, twin_type: type[Twin]) -> Twin:
    """Make a module of another class with the very state of `module`, which stays what it is.

    Both have one ``__dict__``: parameters, buffers, children, hooks and mode are the same objects.
    An optimizer made before sees the twin's parameters, a handle from before removes its hook.

    Args:
        module: Original.
        twin_type: Class of the twin; its constructor does not run.
    """
    twin = twin_type.__new__(twin_type)
    twin.__dict__ = module.__dict__
    hooks: dict[int, Any] = twin._load_state_dict_pre_hooks
    for hook in hooks.values():
        if getattr(hook, "with_module", False):  # refers to its module weakly
            hook.module = weakref.ref(twin)
    return twin


def replace_modules(root: nn.Module, twins: Mapping[nn.Module, nn.Module]) -> None:
    """Put twins in the place of their originals, at every path in the tree of `root`.

    Args:
        root: Changed, as are the containers in it.
        twins: Twin of each original.
    """
    for parent in list(root.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in twins:
                parent._modules[name] = twins[child]
