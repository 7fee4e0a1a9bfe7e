"""Modules that a captured graph calls as they are, and those that it opens in its own way."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from edgeailite.quantization.graph.attention import is_traceable_attention, multihead_attention
from edgeailite.quantization.graph.moves import DROP_PATH
from edgeailite.quantization.graph.operations import (
    KEEP_IN_FLOAT,
    QUANTIZE_HERE,
    QUANTIZER,
)
from edgeailite.quantization.graph.registry import is_registered, operation_of_module
from edgeailite.quantization.graph.window_attention import (
    is_patch_merging,
    is_window_attention,
    patch_merging,
    window_attention,
)

_OPERATIONS = (QUANTIZER, QUANTIZE_HERE, KEEP_IN_FLOAT, DROP_PATH)


class Leaves:
    """Torch's own layers, the engine's modules, and those that the user names.

    Args:
        named: Paths or types.
    """

    def __init__(self, named: Iterable[str | type[nn.Module]] = ()) -> None:
        named = tuple(named)
        self.paths = {leaf for leaf in named if isinstance(leaf, str)}
        self.types = tuple(leaf for leaf in named if not isinstance(leaf, str))

    def is_named(self, module: nn.Module, path: str) -> bool:
        """Return True if the user names the module."""
        return path in self.paths or isinstance(module, self.types)

    def is_leaf(self, module: nn.Module, path: str) -> bool:
        """Return True if the graph calls the module, and does not look inside."""
        if self.is_named(module, path):
            return True
        if "forward" in vars(module) or has_computed_weight(module):
            return False
        return (
            is_registered(type(module))
            or operation_of_module(module) in _OPERATIONS
            or _is_of_torch(module)
        )

    def is_opened(self, module: nn.Module, path: str) -> bool:
        """Return True if :meth:`opened` may give a function for calls of the module."""
        return not self.is_named(module, path) and (
            type(module) is nn.MultiheadAttention
            or is_window_attention(module)
            or is_patch_merging(module)
            or is_batch_norm_with_activation(module)
        )

    def opened(
        self, module: nn.Module, path: str, as_leaf: Callable[..., Any], args: Any, kwargs: Any
    ) -> Callable[..., Any] | None:
        """Return a function whose operations stand for a call of a module; None: the call does.

        Args:
            module: That is called.
            path: Its path.
            as_leaf: Makes the call.
            args: Its arguments.
            kwargs: Likewise.
        """
        if self.is_named(module, path):
            return None
        if type(module) is nn.MultiheadAttention and is_traceable_attention(
            module, *args, **kwargs
        ):
            return lambda *a, **k: multihead_attention(module, *a, **k)
        if is_window_attention(module):
            return lambda *a, **k: window_attention(module, *a, **k)
        if is_patch_merging(module):
            return lambda *a, **k: patch_merging(module, *a, **k)
        if is_batch_norm_with_activation(module):
            parts: Any = module
            return lambda *a, **k: parts.act(parts.drop(as_leaf(*a, **k)))
        return None


def has_computed_weight(module: nn.Module) -> bool:
    """Return True for a layer whose weight is computed from parameters with each call.

    So do torch's parametrizations, its older ``weight_norm`` and ``spectral_norm``. The graph then
    computes the weight too.
    """
    return bool(computed_weights(module)) or parametrize.is_parametrized(module)


def computed_weights(module: nn.Module) -> list[str]:
    """Attributes that hooks of torch's older ``weight_norm`` and ``spectral_norm`` compute."""
    hooks: list[Any] = list(module._forward_pre_hooks.values())
    return [hook.name for hook in hooks if type(hook).__module__.startswith("torch.nn.utils.")]


def is_batch_norm_with_activation(module: nn.Module) -> bool:
    """Return True for timm's batch norm that also calls its children `drop` and `act`."""
    library = type(module).__module__.partition(".")[0]
    return library == "timm" and type(module).__name__ == "BatchNormAct2d"


def _is_of_torch(module: nn.Module) -> bool:
    """Return True for a module of torch's, as fx decides; a container is none."""
    name = type(module).__module__
    of_torch = name.startswith(("torch.nn", "torch.ao.nn"))
    of_torch = of_torch and not name.startswith("torch.nn.utils.")  # parametrizations
    return of_torch and not isinstance(module, nn.Sequential)
