"""The second way to capture a model: ``torch.export``, rebuilt over the model's own modules.

It runs the model on tensors without values, so that code may look at shapes, and it records
operations in place as such. Leaves stay calls of the model's modules, see :mod:`opaque`.
"""

from __future__ import annotations

import inspect
import io
import logging
import operator
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind

from edgeailite.quantization.graph.aten import (
    MEMORY,
    AtenAliasing,
    fold_constants,
    use_public_functions,
)
from edgeailite.quantization.graph.attention import open_attention
from edgeailite.quantization.graph.in_place import follow_in_place
from edgeailite.quantization.graph.leaves import Leaves
from edgeailite.quantization.graph.modes import buffers_kept, in_mode
from edgeailite.quantization.graph.opaque import TENSOR, LeafCall, is_leaf_call, opaque_leaves
from edgeailite.quantization.graph.sizes import Sizes
from edgeailite.quantization.graph.structure import Example, Place, flatten, paths, rebuild
from edgeailite.quantization.graph.tracing import detach_without_gradient

_ROOT = "model"


class _Result:
    """Structure of a result; ``torch.export`` puts a module's own attributes back."""

    structure: Any = None


class _Flat(nn.Module):
    """The model as a function of tensors; it is called, so its own hooks run."""

    def __init__(self, model: nn.Module, example: Example) -> None:
        super().__init__()
        self.model, self.example = model, example
        self.result = _Result()

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        example = self.example.with_tensors(tensors)
        values, self.result.structure = flatten(self.model(*example.args, **example.kwargs))
        return values


@dataclass(frozen=True)
class Exported:
    """A captured graph.

    Attributes:
        graph: Calls the modules of the model.
        constants: Tensors that forward made, by the names that the graph reads them with.
        sizes: Sizes of inputs for which the graph holds.
    """

    graph: fx.Graph
    constants: dict[str, Tensor]
    sizes: Sizes


def export(model: nn.Module, leaves: Leaves, example: Example, training: bool) -> Exported:
    """Capture `model` in training or evaluation mode.

    Args:
        model: Stays as it is.
        leaves: Modules that are one call.
        example: Inputs.
        training: The mode.
    """
    example = example.copied().with_batch_of_two()
    flat, tensors = _Flat(model, example), tuple(example.tensors)
    with (
        in_mode(model, training),
        buffers_kept(model),
        torch.enable_grad(),
        opaque_leaves(model, leaves) as calls,
        _silent(),
    ):
        exported = _run_export(flat, tensors)
    rebuilt = _Rebuilt(exported, calls, model, example)
    graph = rebuilt.build(flat.result.structure)
    follow_in_place(graph, AtenAliasing())
    use_public_functions(graph)
    open_attention(graph)
    fold_constants(graph, rebuilt.constants)
    detach_without_gradient(graph)
    for node in graph.nodes:  # tensors without values of the export
        node.meta = {k: v for k, v in node.meta.items() if k in _META}
    clean = fx.Graph()  # a graph remembers the functions that its nodes called before
    clean.output(clean.graph_copy(graph, {}))
    return Exported(clean, rebuilt.constants, Sizes.of(exported, tensors))


def _run_export(flat: _Flat, tensors: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """Export with an open batch size if the model allows it; all other sizes are the example's.

    Open image sizes would cost a minute where seconds do: attention over them is a large formula.
    """
    batch = tuple({0: torch.export.Dim.AUTO} if t.dim() else None for t in tensors)
    return torch.export.export(flat, tensors, dynamic_shapes=(batch,), strict=False)


@contextmanager
def _silent() -> Iterator[None]:
    """Without the warnings and logs of an export: a failure is told once, in our own words."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class _Rebuilt:
    """A graph over the modules of a model, from the exported one.

    Attributes:
        graph: What is built.
        constants: Tensors that it reads and the model does not have.
    """

    def __init__(
        self,
        exported: torch.export.ExportedProgram,
        calls: Sequence[LeafCall],
        model: nn.Module,
        example: Example,
    ) -> None:
        self.exported, self.calls, self.model, self.example = exported, calls, model, example
        self.graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self.nodes: dict[fx.Node, Any] = {}
        self.memories: dict[int, int] = {}

    def build(self, result: Any) -> fx.Graph:
        """Place inputs, calls and the result, a structure of :class:`Place`."""
        inputs = self._place_inputs()
        specs = self.exported.graph_signature.input_specs
        placeholders = self.exported.graph.find_nodes(op="placeholder")
        for placeholder, spec in zip(placeholders, specs, strict=True):
            if spec.kind is InputKind.USER_INPUT:
                self._set(placeholder, inputs.pop(0))
            elif placeholder.users:
                self._set(placeholder, self._read(spec))
        for node in self.graph.nodes:
            node.meta.setdefault("owner", "")
        values = self._inline(self.exported.graph_module, self.exported.graph, True)
        outputs = rebuild(
            result, lambda v: values[v.index] if isinstance(v, Place) else v, self._make
        )
        self.graph.output(outputs)
        self._place_sizes_first()
        return self.graph

    def _place_sizes_first(self) -> None:
        """Ask for sizes of an input behind it, in both modes' graphs alike."""
        for node in list(self.graph.nodes):
            if node.meta.get("operator") is torch.ops.aten.sym_size.int:
                (source,) = node.all_input_nodes
                if source.op == "placeholder":
                    source.append(node)

    def _make(self, kind: type, fields: dict[str, Any]) -> fx.Node:
        """A dataclass or a mapping that is no dict."""
        if is_dataclass(kind):
            return self.graph.call_function(kind, (), fields)
        return self.graph.call_function(kind, (fields,))

    # ---- inputs ----

    def _place_inputs(self) -> list[fx.Node]:
        """Placeholders as of the model's forward, and a node for each tensor in them."""
        named = _named_inputs(self.model, self.example)
        placeholders = [self.graph.placeholder(name) for name, _ in named]
        return [
            self._taken(placeholder, path)
            for placeholder, (_, value) in zip(placeholders, named, strict=True)
            for path, leaf in paths(value)
            if isinstance(leaf, Tensor)
        ]

    def _taken(self, node: fx.Node, path: Any) -> fx.Node:
        for how, key in path:
            function = operator.getitem if how == "key" else getattr
            node = self.graph.call_function(function, (node, key))
        return node

    def _read(self, spec: Any) -> fx.Node:
        """Read a parameter, a buffer or a constant."""
        target = str(spec.target)
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            path = target.removeprefix(f"{_ROOT}.")
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            path = self._path_of_constant(target)
        else:
            raise TypeError(f"it reads '{target}', which is no tensor")
        return self.graph.get_attr(path)

    def _path_of_constant(self, target: str) -> str:
        value = self.exported.constants[target]
        name = f"_constant_{len(self.constants)}"
        self.constants[name] = value.detach()
        return name

    # ---- calls ----

    def _set(self, node: fx.Node, placed: Any) -> None:
        self.nodes[node] = placed
        if not isinstance(placed, fx.Node):
            return
        value = node.meta.get("val")
        placed.meta["val"] = value
        if isinstance(value, Tensor):
            placed.meta[MEMORY] = self._memory(value)
        elif isinstance(value, list | tuple):
            placed.meta[MEMORY] = tuple(self._memory(v) for v in value if isinstance(v, Tensor))

    def _memory(self, value: Tensor) -> int:
        number = value.untyped_storage()._cdata
        return self.memories.get(number, number)

    def _inline(self, module: fx.GraphModule, graph: fx.Graph, grad: bool) -> list[Any]:
        """Place the calls of a graph; return its outputs."""
        for node in graph.nodes:
            if node.op == "output":
                return [self._of(v) for v in node.args[0]]
            if node.op == "call_function":
                before = len(self.graph.nodes)
                self._place(module, node, grad)
                for placed in list(self.graph.nodes)[before:]:
                    placed.meta.setdefault("owner", _owner(node))
                    placed.meta.setdefault("grad", grad)
        raise AssertionError("a graph without output")

    def _of(self, value: Any) -> Any:
        return fx.node.map_arg(value, lambda n: self.nodes[n])

    def _place(self, module: fx.GraphModule, node: fx.Node, grad: bool) -> None:
        name = getattr(node.target, "__name__", str(node.target))
        if name.startswith(_CHECKS):
            return
        if is_leaf_call(node):
            self._place_leaf(node)
        elif name in _REGIONS:
            self._place_region(module, node, name, grad)
        elif node.target is operator.getitem and isinstance(self.nodes[node.args[0]], list):  # type: ignore[index]
            self._set(node, self.nodes[node.args[0]][node.args[1]])  # type: ignore[index]
        elif isinstance(node.target, torch._ops.HigherOrderOperator):
            raise TypeError(f"it uses {name}, which is no operation on tensors")
        else:
            args, kwargs = self._of(node.args), self._of(dict(node.kwargs))
            placed = self.graph.call_function(node.target, args, kwargs)  # type: ignore[arg-type]
            placed.meta["operator"] = node.target
            self._set(node, placed)

    def _place_leaf(self, node: fx.Node) -> None:
        """Call the module; the results in its structure are found by later nodes."""
        tensors, sizes, number = node.args
        call = self.calls[number]  # type: ignore[index]
        args, kwargs = call.with_values(self._of(tensors), self._of(sizes))
        called = self.graph.call_module(call.path, tuple(args), kwargs)
        called.meta["owner"] = call.path
        results: list[Any] = []
        structure = call.with_results([Place(i) for i in range(call.results.count(TENSOR))])
        for path, leaf in paths(structure):
            if isinstance(leaf, Place):
                results.append(self._taken(called, path))
        self.nodes[node] = results

    def _place_region(self, module: fx.GraphModule, node: fx.Node, name: str, grad: bool) -> None:
        """Place what runs in a context: without gradients, or without autocast."""
        number = _REGIONS[name]
        setting = node.args[:number]
        inner: Any = getattr(module, str(node.args[number].target))  # type: ignore[union-attr]
        if name == "wrap_with_set_grad_enabled":
            grad = bool(setting[0])
        elif setting[2]:
            raise TypeError("it runs a part under torch.autocast; call the model under it instead")
        operands = node.args[number + 1 :]
        placeholders = inner.graph.find_nodes(op="placeholder")
        for placeholder, operand in zip(placeholders, operands, strict=True):
            self.nodes[placeholder] = self._of(operand)
            value, outer = placeholder.meta.get("val"), self.nodes[placeholder]
            if isinstance(value, Tensor) and isinstance(outer, fx.Node):
                known = outer.meta.get(MEMORY)
                if isinstance(known, int):
                    self.memories[value.untyped_storage()._cdata] = known
        self.nodes[node] = self._inline(inner, inner.graph, grad)


# Higher-order operators that run a graph, and the number of their settings in front of it.
_REGIONS = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}
_CHECKS = ("_assert", "sym_constrain_range", "_functional_assert")
_META = ("owner", "grad")


def _owner(node: fx.Node) -> str:
    """Path of the module whose forward makes a call."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    if not path.startswith(_ROOT):
        return ""
    return path.removeprefix(_ROOT).removeprefix(".").partition("@")[0]


def _named_inputs(model: nn.Module, example: Example) -> list[tuple[str, Any]]:
    """Names of forward's arguments with the values of the example."""
    bound = inspect.signature(model.forward).bind(*example.args, **example.kwargs)
    found: list[tuple[str, Any]] = []
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            found += [(f"{name}_{i}", v) for i, v in enumerate(value)]
        elif kind is inspect.Parameter.VAR_KEYWORD:
            found += list(value.items())
        else:
            found.append((name, value))
    return found
