"""The first way to capture a model: symbolic tracing with ``torch.fx``."""

from __future__ import annotations

import functools
import inspect
import re
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from edgeailite.quantization.graph.aliasing import (
    OUT_OF_PLACE,
    TracedAliasing,
    compute_out_of_place,
)
from edgeailite.quantization.graph.attention import open_attention
from edgeailite.quantization.graph.calls import read_calls
from edgeailite.quantization.graph.hooks import has_forward_hooks
from edgeailite.quantization.graph.in_place import follow_in_place
from edgeailite.quantization.graph.leaves import Leaves, computed_weights
from edgeailite.quantization.graph.modes import buffers_kept, in_mode
from edgeailite.quantization.graph.twins import make_twin

# F.max_pool2d and its kin are closures that choose by `return_indices`; a graph that holds one
# cannot be pickled.
_WITH_INDICES = {
    getattr(F, f"{kind}{n}d"): getattr(F, f"{kind}{n}d_with_indices")
    for kind in ("max_pool", "adaptive_max_pool")
    for n in (1, 2, 3)
}
_PICKLABLE = {
    F.max_pool1d: F._max_pool1d,  # type: ignore[attr-defined]
    F.max_pool2d: F._max_pool2d,  # type: ignore[attr-defined]
    F.max_pool3d: F._max_pool3d,  # type: ignore[attr-defined]
    F.adaptive_max_pool1d: F._adaptive_max_pool1d,  # type: ignore[attr-defined]
    F.adaptive_max_pool2d: F._adaptive_max_pool2d,  # type: ignore[attr-defined]
    F.adaptive_max_pool3d: F._adaptive_max_pool3d,  # type: ignore[attr-defined]
}
_CONSTANT = "_tensor_constant"  # fx's name for tensors that forward makes anew


class _Proxy(fx.Proxy):
    """Records ``a += b`` as what it is; fx's own proxy makes it ``a = a + b``."""


def _record(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: fx.Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for _function in OUT_OF_PLACE:
    setattr(_Proxy, f"__{_function.__name__}__", _record(_function))


class _Tracer(fx.Tracer):
    """Leaves are one call each; of each node it is kept who called it, and with which gradients."""

    def __init__(self, leaves: Leaves) -> None:
        super().__init__()
        self.leaves = leaves
        self.current: list[str] = []

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self.leaves.is_leaf(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        path = self.path_of_module(m)
        self.current.append(path)

        def as_leaf(*args: Any, **kwargs: Any) -> Any:
            return self.create_proxy("call_module", path, args, kwargs)

        opened = self.leaves.opened(m, path, as_leaf, args, kwargs)
        if opened is not None:
            result = opened(*args, **kwargs)
        else:
            result = super().call_module(m, forward, args, kwargs)
        self.current.pop()  # not in a `finally`: after an error the path says where it happened
        return result

    def create_node(
        self,
        kind: str,
        target: Any,
        args: Any,
        kwargs: Any,
        name: Any = None,
        type_expr: Any = None,
    ) -> fx.Node:
        if kind == "call_function" and target in _PICKLABLE:
            asks = kwargs.get("return_indices") or args[6:7] == (True,)
            target = (_WITH_INDICES if asks else _PICKLABLE)[target]
        node = super().create_node(kind, target, args, kwargs, name, type_expr)
        node.meta["owner"] = self.current[-1] if self.current else ""
        node.meta["grad"] = torch.is_grad_enabled()
        return node


class TracingFailed(Exception):
    """The model cannot be traced.

    Attributes:
        path: Module whose forward cannot be; empty: the model's own.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


def trace(
    model: nn.Module, leaves: Leaves, defaults: Mapping[str, Any], training: bool
) -> tuple[fx.Graph, dict[str, Tensor]]:
    """Trace `model` in training or evaluation mode.

    Args:
        model: Stays as it is.
        leaves: Modules that are one call.
        defaults: Arguments of forward that keep their default.
        training: The mode.

    Returns:
        Graph, and the tensors that forward made, by the names it reads them with.

    Raises:
        TracingFailed: Tracing is not possible; its cause says why.
    """
    tracer = _Tracer(leaves)

    def module_of(node: fx.Node) -> nn.Module | None:
        return model.get_submodule(str(node.target)) if node.op == "call_module" else None

    try:
        with (
            in_mode(model, training),
            buffers_kept(model),
            _computed_weights_kept(model),
            torch.enable_grad(),
        ):
            graph = tracer.trace(_with_own_hooks(model), concrete_args=dict(defaults) or None)
        graph.set_codegen(fx.graph.CodeGen())
        _drop_default_inputs(graph, defaults)
        open_attention(graph)
        read_calls(graph, module_of)
        follow_in_place(graph, TracedAliasing(module_of))
        compute_out_of_place(graph)
        detach_without_gradient(graph)
    except Exception as error:
        raise TracingFailed(tracer.current[-1] if tracer.current else "") from error
    finally:
        names = [name for name in vars(model) if name.startswith(_CONSTANT)]
        constants = {name: vars(model).pop(name) for name in names}
    return graph, constants


def _with_own_hooks(model: nn.Module) -> nn.Module:
    """The model with its own forward hooks as part of ``forward``, where fx looks.

    So does a ``forward`` that is an attribute of the model.
    """
    if not has_forward_hooks(model) and "forward" not in vars(model):
        return model
    kind = type(model)

    @functools.wraps(vars(model).get("forward", kind.forward))
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return make_twin(self, kind)._call_impl(*args, **kwargs)

    hooked = types.new_class(kind.__name__, (kind,))
    hooked.forward = forward  # type: ignore[attr-defined]
    return make_twin(model, hooked)


@contextmanager
def _computed_weights_kept(model: nn.Module) -> Iterator[None]:
    """Put back the weights that hooks compute as attributes, as plain tensors."""
    kept = [
        (module, name, getattr(module, name))
        for module in nn.Module.modules(model)
        for name in computed_weights(module)
    ]
    try:
        yield
    finally:
        for module, name, weight in kept:
            module.__dict__[name] = weight.detach()


def unused_defaults(
    model: nn.Module, num_inputs: int | None, input_names: tuple[str, ...]
) -> dict[str, Any]:
    """Arguments of forward that the user does not give, with their defaults."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    return {
        p.name: p.default
        for p in parameters[num_inputs or 0 :]
        if p.default is not p.empty and p.name not in input_names
    }


def _drop_default_inputs(graph: fx.Graph, defaults: Mapping[str, Any]) -> None:
    """Remove the placeholders, and fx's checks, of arguments that keep their default."""
    for placeholder in graph.find_nodes(op="placeholder"):
        # fx names them after the argument, numbered.
        if re.sub(r"_\d+$", "", str(placeholder.target)) in defaults:
            _erase_with_users(graph, placeholder)


def _erase_with_users(graph: fx.Graph, node: fx.Node) -> None:
    for user in list(node.users):
        _erase_with_users(graph, user)
    graph.erase_node(node)


def detach_without_gradient(graph: fx.Graph) -> None:
    """Detach what leaves a part of forward that runs without gradients."""
    for node in list(graph.nodes):
        if node.meta.get("grad", True) or node.op == "get_attr":
            continue
        readers = [user for user in node.users if user.meta.get("grad", True)]
        if readers:
            with graph.inserting_after(node):
                detached = graph.call_function(torch.detach, (node,))
            detached.meta["owner"] = node.meta.get("owner", "")
            for reader in readers:
                reader.replace_input_with(node, detached)
