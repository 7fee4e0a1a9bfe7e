"""A graph that runs the user's modules where they are, and typed helpers for its nodes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import fx, nn

from edgeailite.quantization.graph.calls import read_calls
from edgeailite.quantization.graph.export_forms import ExportForms
from edgeailite.quantization.graph.real_tensors import with_real_tensors

Stage = Literal["captured", "prepared", "plain", "integer"]


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
        # The very dictionary: what replaces one of the root's children replaces it in the root too,
        # as deeper in the tree, so that a model is never part float, part wrapper.
        self._modules = root._modules
        for name, parameter in root._parameters.items():
            self.register_parameter(name, parameter)
        for name, buffer in root._buffers.items():
            self.register_buffer(
                name, buffer, persistent=name not in root._non_persistent_buffers_set
            )
        self.graph = graph
        self.export_view: Callable[[GraphModel], nn.Module] | None = None
        self.stage: Stage = "captured"
        # The hardware that it was prepared for; the engine's `Target`.
        self.target: Any = None
        self.recompile()

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
        read_calls(self.graph, self.module_of)
        self.recompile()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph; arguments and results are those of the original model.

        Under ``torch.export`` (and so ``torch.onnx.export``) it is ``export_view`` of the model
        that runs, in functions that are written whole: see :class:`ExportForms`.
        """
        if self.export_view is not None and torch.compiler.is_exporting():
            with with_real_tensors(self):
                view = self.export_view(self)
            return view(*args, **kwargs)
        with ExportForms() if torch.compiler.is_exporting() else nullcontext():
            return self._run(self, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Take all but the generated code."""
        state = self.__dict__.copy()
        del state["_run"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore, and generate the code again."""
        super().__setstate__(state)
        self.recompile()

    def module_of(self, node: fx.Node) -> nn.Module | None:
        """The module that a ``call_module`` node calls."""
        return self.get_submodule(str(node.target)) if node.op == "call_module" else None

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


def attribute(model: nn.Module, path: str) -> Any:
    """Return the module, parameter or buffer at a dotted path."""
    return operator.attrgetter(path)(model)
