"""Twins: modules of another class in the place, and with the state, of a model's own."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from torch import nn

Twin = TypeVar("Twin", bound=nn.Module)
_ENGINE = __name__.removesuffix("graph.twins")


def twin_types(
    mixin: type[Twin], bases: Iterable[type[nn.Module]], prefix: str
) -> dict[type[nn.Module], type[Twin]]:
    """Make a class ``<prefix><Base>`` of `mixin` and each base; pickles find it beside `mixin`.

    Args:
        mixin: Its methods come first.
        bases: Types of the originals.
        prefix: What the names begin with.
    """
    made: dict[type[nn.Module], Any] = {}
    for base in bases:
        documentation = f"{mixin.__name__} over {base.__name__}."
        names = {"__module__": mixin.__module__, "__doc__": documentation}
        made[base] = type(f"{prefix}{base.__name__}", (mixin, base), names)
        setattr(sys.modules[mixin.__module__], made[base].__name__, made[base])
    return made


def original_type(module: nn.Module) -> type[nn.Module]:
    """Type of a module in the user's model: of a module of the engine's the type of torch's."""
    own = type(module)
    base = next(t for t in own.__mro__ if t.__module__.startswith("torch.nn"))
    return base if own.__module__.startswith(_ENGINE) and base is not nn.Module else own


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
    for parent in list(nn.Module.modules(root)):
        for name, child in parent._modules.items():
            if child is not None and child in twins:
                parent._modules[name] = twins[child]
