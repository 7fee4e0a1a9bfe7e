"""From a module to a graph: symbolic tracing with ``torch.fx``."""

from __future__ import annotations

import inspect
import re
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from edgeailite.quantization.graph.attention import is_traceable_attention, multihead_attention
from edgeailite.quantization.graph.model import GraphModel
from edgeailite.quantization.graph.modes import in_mode, is_training
from edgeailite.quantization.graph.moves import DROP_PATH
from edgeailite.quantization.graph.operations import (
    KEEP_IN_FLOAT,
    QUANTIZE_HERE,
    QUANTIZER,
)
from edgeailite.quantization.graph.registry import is_registered, operation_of_module
from edgeailite.quantization.graph.twins import make_twin, replace_modules
from edgeailite.quantization.graph.window_attention import is_window_attention, window_attention

_ENGINE = Path(__file__).parent
# F.max_pool2d and its kin are closures that choose by `return_indices`; a graph that holds one
# cannot be pickled.
_PICKLABLE = {
    F.max_pool1d: F._max_pool1d,  # type: ignore[attr-defined]
    F.max_pool2d: F._max_pool2d,  # type: ignore[attr-defined]
    F.max_pool3d: F._max_pool3d,  # type: ignore[attr-defined]
    F.adaptive_max_pool1d: F._adaptive_max_pool1d,  # type: ignore[attr-defined]
    F.adaptive_max_pool2d: F._adaptive_max_pool2d,  # type: ignore[attr-defined]
    F.adaptive_max_pool3d: F._adaptive_max_pool3d,  # type: ignore[attr-defined]
}


_LEAVES = (QUANTIZER, QUANTIZE_HERE, KEEP_IN_FLOAT, DROP_PATH)


class TraceError(RuntimeError):
    """The model cannot be captured as a graph."""


class _Tracer(fx.Tracer):
    """Leaves: torch's own layers, quantizers, and what the user names."""

    def __init__(self, leaves: Iterable[str | type[nn.Module]]) -> None:
        super().__init__()
        self.leaf_paths = {leaf for leaf in leaves if isinstance(leaf, str)}
        self.leaf_types = tuple(leaf for leaf in leaves if not isinstance(leaf, str))
        self.current: list[str] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if (
            isinstance(m, self.leaf_types)
            or module_qualified_name in self.leaf_paths
            or is_registered(type(m))
            or operation_of_module(m) in _LEAVES
        ):
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        path = self.path_of_module(m)
        self.current.append(path)
        asked_for = isinstance(m, self.leaf_types) or path in self.leaf_paths
        result: Any
        if asked_for:
            result = super().call_module(m, forward, args, kwargs)
        elif type(m) is nn.MultiheadAttention and is_traceable_attention(m, *args, **kwargs):
            result = multihead_attention(m, *args, **kwargs)
        elif is_window_attention(m):
            result = window_attention(m, *args, **kwargs)
        elif _is_batch_norm_with_activation(m):
            children: Any = m
            normalized = self.create_proxy("call_module", path, args, kwargs)
            result = children.act(children.drop(normalized))
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
            target = _PICKLABLE[target]
        node = super().create_node(kind, target, args, kwargs, name, type_expr)
        node.meta["owner"] = self.current[-1] if self.current else ""
        return node


def capture(
    model: nn.Module,
    leaf_modules: Iterable[str | type[nn.Module]] = (),
    num_inputs: int | None = None,
    input_names: Sequence[str] = (),
) -> GraphModel:
    """Trace `model` symbolically.

    Args:
        model: Any module; the graph shares its modules. timm's batch norms with activation become
            plain ones in it. A :class:`GraphModel` is returned as it is.
        leaf_modules: Paths or types that are called as they are; they stay in float.
        num_inputs: Number of positional inputs the user gives; arguments behind them keep their
            defaults. None: those without a default.
        input_names: Further inputs, given by name.

    Returns:
        Graph over the same modules, its calls read, without dead code.

    Raises:
        TraceError: Names the module's path, the source line, and the way out.
    """
    if isinstance(model, GraphModel):
        return model
    defaults = _defaults(model, num_inputs, input_names)
    with in_mode(model, training=True):
        training_graph = _trace(model, leaf_modules, defaults)
    _take_constants(model)
    with in_mode(model, training=False):
        graph = _trace(model, leaf_modules, defaults)
    _split_batch_norms(model)
    captured = GraphModel(model, graph)
    for name, constant in _take_constants(model).items():
        captured.register_buffer(name, constant, persistent=False)
    _read_flags_when_run(captured, training_graph, type(model).__name__)
    captured.tidy()
    return captured


def _is_batch_norm_with_activation(module: nn.Module) -> bool:
    """Return True for timm's batch norm that also calls its children `drop` and `act`."""
    library = type(module).__module__.partition(".")[0]
    return library == "timm" and type(module).__name__ == "BatchNormAct2d"


def _split_batch_norms(model: nn.Module) -> None:
    """Make timm's batch norms with activation plain ones: the graph calls their children itself."""
    found = [m for m in model.modules() if _is_batch_norm_with_activation(m)]
    replace_modules(model, {module: make_twin(module, nn.BatchNorm2d) for module in found})


def _trace(
    model: nn.Module, leaves: Iterable[str | type[nn.Module]], defaults: dict[str, Any]
) -> fx.Graph:
    tracer = _Tracer(tuple(leaves))
    try:
        graph = tracer.trace(model, concrete_args=defaults or None)
    except Exception as error:
        raise TraceError(_trace_message(model, tracer, error)) from error
    graph.set_codegen(fx.graph.CodeGen())
    _drop_default_inputs(graph, defaults)
    return graph


def _take_constants(model: nn.Module) -> dict[str, Tensor]:
    """Remove from `model` the tensors that its forward makes anew and tracing left there."""
    names = [n for n in vars(model) if n.startswith("_tensor_constant")]
    return {name: vars(model).pop(name) for name in names}


def _read_flags_when_run(model: GraphModel, training: fx.Graph, name: str) -> None:
    """Make the flags that differ between the modes be read from the modules as they run.

    ``F.dropout(x, training=self.training)`` holds what ``self.training`` was while it was traced.

    Args:
        model: Its graph was traced in evaluation mode; changed.
        training: The graph of training mode.
        name: The original model's, for the message.
    """
    nodes = list(model.graph.nodes)
    if [n.target for n in nodes] != [n.target for n in training.nodes]:
        warnings.warn(
            f"{name}.forward takes another path in training mode (auxiliary outputs, most likely): "
            "the one of evaluation mode is quantized, and runs in training too.",
            stacklevel=4,
        )
        return
    for node, other in zip(nodes, training.nodes, strict=True):
        places = [i for i, a in enumerate(node.args) if _flips(a, other.args[i])]
        names = [k for k, a in node.kwargs.items() if _flips(a, other.kwargs[k])]
        if not places and not names:
            continue
        flag = _training_flag(model, node)
        for place in places:
            node.update_arg(place, flag)
        for key in names:
            node.update_kwarg(key, flag)


def _training_flag(model: GraphModel, node: fx.Node) -> fx.Node:
    """A node that says whether the module whose forward calls `node` is in training mode."""
    path = node.meta["owner"]
    if not path:  # a graph cannot name the model itself: a child of its own stands for it
        path = "_mode"
        model.add_module(path, nn.Identity())
    with model.graph.inserting_before(node):
        return model.graph.call_function(is_training, (model.graph.get_attr(path),))


def _flips(in_evaluation: Any, in_training: Any) -> bool:
    return in_evaluation is False and in_training is True


def _defaults(
    model: nn.Module, num_inputs: int | None, input_names: Sequence[str]
) -> dict[str, Any]:
    """The arguments that the user does not give, with their defaults."""
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


def _trace_message(model: nn.Module, tracer: _Tracer, error: Exception) -> str:
    path = tracer.current[-1] if tracer.current else ""
    where = (
        f"module '{path}' ({type(model.get_submodule(path)).__name__})"
        if path
        else f"{type(model).__name__}.forward"
    )
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_library(f.filename)]
    line = f' at {frames[-1].filename}:{frames[-1].lineno}: "{frames[-1].line}"' if frames else ""
    leaf = (
        f"leaf_modules=['{path}']"
        if path
        else "leaf_modules=[...] with the path of the part that branches"
    )
    return (
        f"{type(model).__name__} cannot be captured as a graph: {where}{line} "
        f"({type(error).__name__}: {error}). "
        f"Make that code independent of the tensors' values, or pass {leaf}: "
        "such a module stays in float and the report says so."
    )


def _is_library(filename: str) -> bool:
    return Path(filename).is_relative_to(_ENGINE) or Path(filename).is_relative_to(
        Path(torch.__file__).parent
    )
