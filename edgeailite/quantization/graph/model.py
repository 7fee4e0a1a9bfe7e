"""The user's model, run by a graph; and functions for its graph, nodes and modules.

What the engine knows of a model is asked with functions, and kept under one name in the model:
children, attributes and methods of a user's model may have any name.
"""

from __future__ import annotations

import copy
import functools
import operator
import sys
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import fx, nn

from edgeailite.quantization.graph.calls import read_calls
from edgeailite.quantization.graph.export_forms import ExportForms
from edgeailite.quantization.graph.real_tensors import with_real_tensors
from edgeailite.quantization.graph.sizes import Sizes
from edgeailite.quantization.graph.structure import flatten, without_types

Stage = Literal["captured", "prepared", "plain", "integer"]
Way = Literal["torch.fx", "torch.export"]

_PROGRAM = "_edgeailite"  # the one name that the engine takes in a user's model
BY_MODE = "by_mode"
"""Key of an output's ``meta``: it is a pair, of the results in evaluation and in training."""
TRAINING_ONLY = "training_only"
"""Key of a call's ``meta``: only the result of training needs it."""


@dataclass
class Program:
    """State of the engine in a model: its graph, and how far it is prepared.

    Attributes:
        graph: What ``forward`` runs.
        stage: What has been done to the graph.
        way: How it was captured.
        sizes: Sizes of inputs for which it holds; None: all.
        guard: Compares it with the original model on the first batch; None: that is done.
        target: The hardware that it was prepared for; the engine's ``Target``.
        export_view: Makes the model that ``torch.export`` sees.
        modules: Types of the modules that a prepared graph calls, by path.
        run: Running code of the graph.
        run_evaluation: Running code without what only the result of training needs; None: there is
            nothing of it.
    """

    graph: fx.Graph
    stage: Stage = "captured"
    way: Way = "torch.fx"
    sizes: Sizes | None = None
    guard: Any = None
    target: Any = None
    export_view: Callable[[GraphModel], nn.Module] | None = None
    modules: dict[str, type[nn.Module]] = field(default_factory=dict)
    run: Callable[..., Any] | None = None
    run_evaluation: Callable[..., Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Take all but the generated code."""
        return {**self.__dict__, "run": None, "run_evaluation": None}


class GraphModel(nn.Module):
    """The user's modules where they were, run by a graph.

    Unlike :class:`torch.fx.GraphModule` it keeps every container and every unused module of the
    original (so that state-dict keys never change), through ``copy.deepcopy`` and pickling too.
    :func:`as_graph_model` makes one that is an instance of the user's class as well.

    Args:
        root: Module whose parameters, buffers and children become this one's (shared, not copied).
        graph: What ``forward`` runs.
    """

    _original: type[nn.Module] | None = None  # the user's class, where this one derives from it

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        super().__init__()
        _begin(self, root, graph)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph; arguments and results are those of the original model.

        Under ``torch.export`` (and so ``torch.onnx.export``) it is ``export_view`` of the model
        that runs, in functions that are written whole: see :class:`ExportForms`. Dataclasses in the
        result are dicts then, which the exporters know.
        """
        program = program_of(self)
        if program.export_view is not None and torch.compiler.is_exporting():
            with with_real_tensors(self):
                view = program.export_view(self)
            return view(*args, **kwargs)
        compare_first_batch(self, args, kwargs)
        if program.sizes is not None and not torch.compiler.is_compiling():
            program.sizes.check(flatten((args, kwargs))[0])
        if not torch.compiler.is_exporting():
            return self._run(args, kwargs)
        with ExportForms():
            return without_types(self._run(args, kwargs))

    def _run(self, args: Any, kwargs: Any) -> Any:
        program = program_of(self)
        assert program.run is not None
        if program.run_evaluation is None:
            return program.run(self, *args, **kwargs)
        if not self.training:
            return program.run_evaluation(self, *args, **kwargs)
        return program.run(self, *args, **kwargs)[1]

    def __getattr__(self, name: str) -> Any:
        """Look an attribute up; ``graph`` is the captured one where the model has none itself."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "graph" and _PROGRAM in self.__dict__:
                return graph_of(self)
            raise

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphModel:
        """Copy the state, and generate the code again."""
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__dict__, memo))
        return new

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickle by the user's class; without it, with a warning, where nobody could find it."""
        base = self._original
        if base is None:
            return _empty, (type(self),), self.__dict__
        if _is_importable(base):
            return _empty_of, (base,), self.__dict__
        warnings.warn(
            f"{base.__qualname__} cannot be imported from '{base.__module__}': what is pickled "
            "computes the same, but has none of its methods. Define the class at the top of a "
            "file.",
            stacklevel=2,
        )
        return _empty, (GraphModel,), self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore, and generate the code again."""
        nn.Module.__setstate__(self, state)
        recompile(self)


def as_graph_model(root: nn.Module, graph: fx.Graph) -> GraphModel:
    """Make a graph model that is an instance of the class of `root` too.

    Own methods, properties and an overridden ``train()`` of that class go on working.

    Args:
        root: The user's model; both share their state.
        graph: What ``forward`` runs.
    """
    model = _empty_of(type(root))
    _begin(model, root, graph)
    return model


def _begin(model: GraphModel, root: nn.Module, graph: fx.Graph) -> None:
    # The children stay in the very dictionary: what replaces one of the root's children replaces it
    # in the root too, as deeper in the tree, so that a model is never part float, part wrapper.
    # What would hide one of nn.Module's own methods stays with the root: the graph reads no
    # attributes, and optimizers, checkpoints and parallel wrappers call these methods.
    hidden = {name for name in root.__dict__ if callable(getattr(nn.Module, name, None))}
    model.__dict__.update({k: v for k, v in root.__dict__.items() if k not in hidden})
    for own in ("_parameters", "_buffers", "_non_persistent_buffers_set"):
        model.__dict__[own] = copy.copy(root.__dict__[own])
    model.__dict__[_PROGRAM] = Program(graph)
    recompile(model)


def _graph_type(base: type[nn.Module]) -> type[GraphModel]:
    """Class of graph models that derives from the user's class."""
    names = {"__module__": base.__module__, "__doc__": base.__doc__, "_original": base}
    return types.new_class(base.__name__, (GraphModel, base), exec_body=lambda n: n.update(names))


def _empty(kind: type[GraphModel]) -> GraphModel:
    return kind.__new__(kind)


def _empty_of(base: type[nn.Module]) -> GraphModel:
    return _empty(_graph_type(base))


def _is_importable(kind: type) -> bool:
    found: Any = sys.modules.get(kind.__module__)
    for name in kind.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is kind


def program_of(model: nn.Module) -> Program:
    """Graph, stage and target of a graph model."""
    program = model.__dict__[_PROGRAM]
    assert isinstance(program, Program)
    return program


def graph_of(model: nn.Module) -> fx.Graph:
    """Graph that a graph model runs."""
    return program_of(model).graph


def target_of(model: nn.Module) -> Any:
    """Hardware that a model was prepared for; the engine's ``Target``."""
    return program_of(model).target


def compare_first_batch(model: nn.Module, args: Any, kwargs: Any) -> bool:
    """Compare a graph that was captured without an example with its model, once.

    Args:
        model: The graph model.
        args: Inputs of the first batch.
        kwargs: Inputs by name.

    Returns:
        True if it was compared now.

    Raises:
        TraceError: They compute different values; a value cannot be quantized as it is.
    """
    program = program_of(model)
    guard = program.guard
    if guard is None or torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return False
    program.guard = None
    guard.compare_first_batch(model, args, kwargs)
    return True


def remember_modules(model: GraphModel) -> None:
    """Note the modules that the graph calls, for :func:`check_modules`."""
    called = {str(node.target) for node in graph_of(model).find_nodes(op="call_module")}
    program_of(model).modules = {path: type(model.get_submodule(path)) for path in called}


def check_modules(model: GraphModel) -> None:
    """Raise a ValueError if a module that the graph calls was replaced since it was prepared."""
    for path, kind in sorted(program_of(model).modules.items()):
        try:
            found = type(model.get_submodule(path)).__name__
        except AttributeError:
            found = "missing module"
        if found != kind.__name__:
            raise ValueError(
                f"'{path}' was replaced after the model was wrapped: it is a {found} now, the "
                f"graph has a {kind.__name__}. Replace modules (a new head, for transfer learning) "
                "in the float model, then wrap it."
            )


def recompile(model: GraphModel) -> None:
    """Make the running code from the graph; call it after every change of the graph."""
    program = program_of(model)
    program.run, program.run_evaluation = _code(program.graph), None
    if _is_by_mode(program.graph):
        program.run_evaluation = _code(_evaluation_graph(model))


def _code(graph: fx.Graph) -> Callable[..., Any]:
    code = graph.python_code("self")
    scope: dict[str, Any] = dict(code.globals)
    exec(compile(code.src, "<edgeailite graph>", "exec"), scope)
    found: Callable[..., Any] = scope["forward"]
    return found


def _is_by_mode(graph: fx.Graph) -> bool:
    return any(node.meta.get(BY_MODE, False) for node in graph.find_nodes(op="output"))


def evaluation_result(graph: fx.Graph) -> Any:
    """Nodes of the result in evaluation mode, in its structure."""
    (output,) = graph.find_nodes(op="output")
    result: Any = output.args[0]
    return result[0] if output.meta.get(BY_MODE, False) else result


def _evaluation_graph(model: GraphModel) -> fx.Graph:
    graph = copy.deepcopy(graph_of(model))
    (output,) = graph.find_nodes(op="output")
    output.args = (evaluation_result(graph),)
    output.meta.pop(BY_MODE)
    graph.owning_module = model  # type: ignore[assignment]
    graph.eliminate_dead_code()
    graph.owning_module = None
    return graph


def drop_training_result(model: GraphModel) -> None:
    """Leave only the result of evaluation, and what it needs, in the graph."""
    if _is_by_mode(graph_of(model)):
        program_of(model).graph = _evaluation_graph(model)
        tidy(model)


def tidy(model: GraphModel) -> None:
    """End a rewrite: drop dead code, check the graph, make the running code."""
    graph = graph_of(model)
    # Only for the time of the checks: an owner in the graph would be pickled with it.
    graph.owning_module = model  # type: ignore[assignment]
    graph.eliminate_dead_code()
    graph.lint()
    graph.owning_module = None
    read_calls(graph, functools.partial(attribute, model))
    recompile(model)


def module_of(model: nn.Module, node: fx.Node) -> nn.Module | None:
    """Module that a ``call_module`` node calls."""
    return model.get_submodule(str(node.target)) if node.op == "call_module" else None


def add_module_at(model: nn.Module, path: str, module: nn.Module) -> None:
    """Register `module` under `path`; its parent must exist."""
    parent, _, name = path.rpartition(".")
    model.get_submodule(parent).add_module(name, module)


def free_path(model: nn.Module, path: str) -> str:
    """`path`, or `path_1`, `path_2`… if it is taken."""
    parent, _, name = path.rpartition(".")
    owner, candidate, count = model.get_submodule(parent), name, 0
    while hasattr(owner, candidate):
        count += 1
        candidate = f"{name}_{count}"
    return f"{parent}.{candidate}" if parent else candidate


def attribute(model: nn.Module, path: str) -> Any:
    """Return the module, parameter or buffer at a dotted path."""
    return operator.attrgetter(path)(model)
