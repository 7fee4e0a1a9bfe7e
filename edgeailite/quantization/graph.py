"""Capture with ``torch.fx`` and typed graph helpers."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils._python_dispatch import _disable_current_modes

from edgeailite.quantization.fake_quantize import FakeQuantize, NoQAct, QAct
from edgeailite.quantization.layers import QuantLayer
from edgeailite.quantization.operators import node_kind

_ENGINE = Path(__file__).parent
# F.max_pool2d and its kin are closures that choose by `return_indices`; a graph that holds one
# cannot be pickled.
_PICKLABLE = {
    F.max_pool1d: F._max_pool1d, F.max_pool2d: F._max_pool2d, F.max_pool3d: F._max_pool3d,
    F.adaptive_max_pool1d: F._adaptive_max_pool1d, F.adaptive_max_pool2d: F._adaptive_max_pool2d,
    F.adaptive_max_pool3d: F._adaptive_max_pool3d,
}  # fmt: skip


class TraceError(RuntimeError):
    """The model cannot be captured as a graph."""


class GraphModel(nn.Module):
    """The user's modules where they were, run by a graph.

    Unlike :class:`torch.fx.GraphModule` it keeps every container and every unused module of the
    original (so that state-dict keys never change), through ``copy.deepcopy`` and pickling too.

    Args:
        root: Module whose children, parameters and buffers become this one's (shared, not copied).
        graph: What ``forward`` runs.
    """

    graph: fx.Graph

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        super().__init__()
        self.training = root.training
        for name, child in root._modules.items():
            self.register_module(name, child)
        for name, parameter in root._parameters.items():
            self.register_parameter(name, parameter)
        for name, buffer in root._buffers.items():
            self.register_buffer(
                name, buffer, persistent=name not in root._non_persistent_buffers_set
            )
        self.graph = graph
        self.num_loads = (
            0  # state dicts loaded so far: what was derived from the weights before is stale
        )
        self.export_view: Callable[[GraphModel], nn.Module] | None = None
        self.recompile()
        self._remember_tensors()

    def recompile(self) -> None:
        """Make the running code from the graph; call it after every change of the graph."""
        code = self.graph.python_code("self")
        scope: dict[str, Any] = dict(code.globals)
        exec(compile(code.src, "<edgeailite graph>", "exec"), scope)
        self._run: Callable[..., Any] = scope["forward"]

    def tidy(self) -> None:
        """End a rewrite: drop dead code, check the graph, make the running code."""
        # Only for the time of the checks: an owner in the graph would be pickled with it.
        self.graph.owning_module = self  # type: ignore[assignment]
        self.graph.eliminate_dead_code()
        self.graph.lint()
        self.graph.owning_module = None
        self.recompile()
        self._remember_tensors()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph; arguments and results are those of the original model.

        Under ``torch.export`` (and so ``torch.onnx.export``) it is ``export_view`` of the model
        that runs.
        """
        if self.export_view is not None and torch.compiler.is_exporting():
            return self._viewed_for_export()(*args, **kwargs)
        return self._run(self, *args, **kwargs)

    def _remember_tensors(self) -> None:
        """Keep references to the tensors: while ``torch.export`` traces, fake ones stand in their places."""
        # By module, not by its dictionaries: torch.export leaves other ones behind.
        self._tensors = [
            (module, kind, name, tensor)
            for module in self.modules()
            for kind in ("_parameters", "_buffers")
            for name, tensor in getattr(module, kind).items()
        ]

    def _viewed_for_export(self) -> nn.Module:
        """Make the view from the real tensors, outside of the running trace: none of that work is exported."""
        assert self.export_view is not None
        fakes = [(m, kind, name, getattr(m, kind)[name]) for m, kind, name, _ in self._tensors]
        with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
            try:
                for module, kind, name, tensor in self._tensors:
                    getattr(module, kind)[name] = tensor
                return self.export_view(self)
            finally:
                for module, kind, name, fake in fakes:
                    getattr(module, kind)[name] = fake

    def train(self, mode: bool = True) -> GraphModel:
        """As :meth:`torch.nn.Module.train`."""
        super().train(mode)
        self._remember_tensors()
        return self

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As :meth:`torch.nn.Module.load_state_dict`."""
        result = super().load_state_dict(*args, **kwargs)
        self.num_loads += 1
        self._remember_tensors()
        return result

    def _apply(self, fn: Callable, recurse: bool = True) -> GraphModel:
        super()._apply(fn, recurse)
        self._remember_tensors()
        return self

    def __getstate__(self) -> dict[str, Any]:
        """All but the generated code and the references."""
        state = self.__dict__.copy()
        del state["_run"], state["_tensors"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore, and generate the code again."""
        super().__setstate__(state)
        self.recompile()
        self._remember_tensors()

    def module_of(self, node: fx.Node) -> nn.Module | None:
        """The module that a ``call_module`` node calls."""
        return self.get_submodule(str(node.target)) if node.op == "call_module" else None

    def classify(self) -> None:
        """Write every node's :class:`Kind` to ``node.meta['kind']``."""
        for node in self.graph.nodes:
            node.meta["kind"] = node_kind(node, self.module_of(node))

    def add_module_at(self, path: str, module: nn.Module) -> None:
        """Register `module` under `path`; its parent must exist."""
        parent, _, name = path.rpartition(".")
        self.get_submodule(parent).add_module(name, module)

    def free_path(self, path: str) -> str:
        """`path`, or `path_1`, `path_2`… if it is taken."""
        parent, _, name = path.rpartition(".")
        owner, candidate, count = self.get_submodule(parent), name, 0
        while hasattr(owner, candidate):
            count += 1
            candidate = f"{name}_{count}"
        return f"{parent}.{candidate}" if parent else candidate


class _Tracer(fx.Tracer):
    """Leaves: torch's own layers, quantizers, and what the user names."""

    def __init__(self, leaves: Iterable[str | type[nn.Module]]) -> None:
        super().__init__()
        self.leaf_paths = {leaf for leaf in leaves if isinstance(leaf, str)}
        self.leaf_types = tuple(leaf for leaf in leaves if not isinstance(leaf, str))
        self.current: list[str] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if (
            isinstance(m, (FakeQuantize, QAct, NoQAct, *self.leaf_types))
            or module_qualified_name in self.leaf_paths
        ):
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        self.current.append(self.path_of_module(m))
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
        model: Any module; it is not changed. A :class:`GraphModel` is returned as it is.
        leaf_modules: Paths or types that are called as they are; they stay in float.
        num_inputs: How many positional inputs the user gives; arguments behind them keep their
            defaults. None: those without a default.
        input_names: Further inputs, given by name.

    Returns:
        Graph over the same modules, classified, without dead code.

    Raises:
        TraceError: Names the module's path, the source line, and the way out.
        ValueError: The model's modules are part of a wrapper already.
    """
    if isinstance(model, GraphModel):
        return model
    _refuse_quantized(model)
    tracer = _Tracer(tuple(leaf_modules))
    try:
        fixed = _defaults(model, num_inputs, input_names)
        graph = tracer.trace(model, concrete_args=fixed or None)
    except Exception as error:
        raise TraceError(_trace_message(model, tracer, error)) from error
    graph.set_codegen(fx.graph.CodeGen())
    _drop_fixed_inputs(graph, fixed)
    captured = GraphModel(model, graph)
    captured.tidy()
    captured.classify()
    return captured


def _refuse_quantized(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if isinstance(module, QuantLayer):
            raise ValueError(
                f"'{path}' is quantized already: {type(model).__name__} is part of a wrapper. "
                "Give that wrapper's .module, or a copy of the model from before it was wrapped."
            )


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


def _drop_fixed_inputs(graph: fx.Graph, fixed: Mapping[str, Any]) -> None:
    """Remove the placeholders, and fx's checks, of arguments whose default is fixed."""
    for placeholder in graph.find_nodes(op="placeholder"):
        # fx names them after the argument, numbered.
        if re.sub(r"_\d+$", "", str(placeholder.target)) in fixed:
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
        f"{type(model).__name__} cannot be captured as a graph: {where}{line} ({type(error).__name__}: {error}). "
        f"Make that code independent of the tensors' values, or pass {leaf}: "
        "such a module stays in float and the report says so."
    )


def _is_library(filename: str) -> bool:
    return Path(filename).is_relative_to(_ENGINE) or Path(filename).is_relative_to(
        Path(torch.__file__).parent
    )
