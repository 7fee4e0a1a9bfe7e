"""Leaves under ``torch.export``: each call is one operation, whatever happens inside.

For the time of an export the forward of each leaf is a call of the operator ``edgeailite::leaf``,
which holds the number of a :class:`LeafCall`. The operator runs the leaf, so shapes are known.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map_only, tree_unflatten

from edgeailite.quantization.graph.leaves import Leaves
from edgeailite.quantization.graph.modes import in_mode

_state = threading.local()
TENSOR = object()  # stands for a tensor among results


@dataclass
class LeafCall:
    """A call of a leaf.

    Attributes:
        path: Of the leaf.
        forward: Its own forward.
        arguments: Arguments of the call, flat.
        structure: Structure of ``(args, kwargs)``.
        result: Structure of the result, once it ran.
        results: Its values, without the tensors.
    """

    path: str
    forward: Callable[..., Any]
    arguments: list[Any]
    structure: TreeSpec
    result: TreeSpec | None = None
    results: list[Any] = field(default_factory=list)

    def run(self, tensors: Sequence[Tensor], sizes: Sequence[Any]) -> list[Tensor]:
        """Run the leaf with these tensors and sizes in the place of those it was called with."""
        args, kwargs = self.with_values(tensors, sizes)
        values, self.result = tree_flatten(self.forward(*args, **kwargs))
        self.results = [TENSOR if isinstance(value, Tensor) else value for value in values]
        # An operator of the dispatcher may not return what it was given.
        own = {id(tensor) for tensor in tensors}
        found = [value for value in values if isinstance(value, Tensor)]
        return [v.clone() if id(v) in own or v._is_view() else v for v in found]

    def with_results(self, tensors: Sequence[Any]) -> Any:
        """Result of the call, with these in the place of its tensors."""
        assert self.result is not None
        next_tensor = iter(tensors)
        values = [next(next_tensor) if v is TENSOR else v for v in self.results]
        return tree_unflatten(values, self.result)

    def with_values(self, tensors: Sequence[Any], sizes: Sequence[Any]) -> Any:
        """``(args, kwargs)`` of the call, with these in the place of its tensors and sizes."""
        next_tensor, next_size = iter(tensors), iter(sizes)
        values = [
            next(next_tensor)
            if isinstance(value, Tensor)
            else next(next_size)
            if isinstance(value, torch.SymInt)
            else value
            for value in self.arguments
        ]
        return tree_unflatten(values, self.structure)


def _run(tensors: list[Tensor], sizes: list[Any], call: int) -> list[Tensor]:
    calls: list[LeafCall] = _state.calls
    return calls[call].run(tensors, sizes)


_library = torch.library.Library("edgeailite", "DEF")
_library.define("leaf(Tensor[] tensors, SymInt[] sizes, int call) -> Tensor[]")
_library.impl("leaf", _run, "CompositeExplicitAutograd")
torch.library.register_fake("edgeailite::leaf", _run, lib=_library)
LEAF = torch.ops.edgeailite.leaf.default


@contextmanager
def opaque_leaves(model: nn.Module, leaves: Leaves) -> Iterator[list[LeafCall]]:
    """Make each leaf's forward one operation, until the end of the context.

    Args:
        model: Whose leaves are meant.
        leaves: Which modules are leaves.

    Yields:
        The calls, in their order; the operator holds their index.
    """
    _state.calls = []
    before: list[tuple[nn.Module, Any]] = []
    try:
        for path, module in nn.Module.named_modules(model):
            forward = _stand_in(module, path, leaves)
            if forward is not None:
                before.append((module, module.__dict__.get("forward")))
                module.__dict__["forward"] = forward
        yield _state.calls
    finally:
        for module, own in before:
            del module.__dict__["forward"]
            if own is not None:
                module.__dict__["forward"] = own
        del _state.calls


def _stand_in(module: nn.Module, path: str, leaves: Leaves) -> Callable[..., Any] | None:
    """Forward of a module for the time of an export; None: its own."""
    own, plain = module.forward, cast("Callable[..., Any]", nn.BatchNorm2d.forward)

    def as_leaf(*args: Any, **kwargs: Any) -> Any:
        return _call(path, own, getattr(module, "inplace", False) is True, args, kwargs)

    def opened(*args: Any, **kwargs: Any) -> Any:
        inner = leaves.opened(module, path, batch_norm, args, kwargs)
        return (inner or as_leaf)(*args, **kwargs)

    def batch_norm(*args: Any, **kwargs: Any) -> Any:
        return _call(path, functools.partial(plain, module), False, args, kwargs)

    if isinstance(module, nn.RNNBase):
        own = functools.partial(_recurrent_result, module)
    if isinstance(module, parametrize.ParametrizationList):
        own = functools.partial(torch.empty_like, _weight_of(module))
    if leaves.is_opened(module, path):
        return opened
    return as_leaf if leaves.is_leaf(module, path) else None


def _weight_of(module: nn.Module) -> Tensor:
    """Weight that a parametrization computes, which may depend on the values of parameters."""
    with in_mode(module, training=False), torch.no_grad():
        return module()


def _recurrent_result(module: nn.RNNBase, x: Tensor, state: Any = None) -> Any:
    """Result of a recurrent layer without values; its loop over time has a thousand conditions."""
    width = module.proj_size or module.hidden_size
    directions = 2 if module.bidirectional else 1
    batch = (x.shape[0 if module.batch_first else 1],) if x.dim() == 3 else ()
    y = x.new_empty((*x.shape[:-1], directions * width))
    hidden = x.new_empty((directions * module.num_layers, *batch, width))
    if not isinstance(module, nn.LSTM):
        return y, hidden
    return y, (hidden, x.new_empty((directions * module.num_layers, *batch, module.hidden_size)))


def _call(
    path: str, forward: Callable[..., Any], in_place: bool, args: Any, kwargs: dict[str, Any]
) -> Any:
    arguments, structure = tree_flatten(tree_map_only(torch.Size, tuple, (args, kwargs)))
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    sizes = [a for a in arguments if isinstance(a, torch.SymInt)]
    call = LeafCall(path, forward, arguments, structure)
    _state.calls.append(call)
    result = call.with_results(LEAF(tensors, sizes, len(_state.calls) - 1))
    return tensors[0].copy_(result) if in_place else result


def is_leaf_call(node: fx.Node) -> bool:
    """Return True for a node of an exported graph that stands for the call of a leaf."""
    return node.target is LEAF
