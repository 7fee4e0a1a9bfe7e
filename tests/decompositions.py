"""An export in a third to a half of the time: operators are decomposed one by one.

torch's exporter traces the whole graph again to decompose the few operators that ONNX has no
function for. Both ways lead to the same nodes; only numbers in names of values may differ
(test_decompositions.py).
"""

from __future__ import annotations

import functools
import operator
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._export.utils import _is_cia_op
from torch.export.exported_program import (
    _detect_fake_mode_from_gm,
    _override_composite_implicit_decomp,
    _special_op_to_preserve_cia,
    _split_decomp_table_to_cia_and_python_decomp,
)
from torch.export.graph_signature import ExportGraphSignature
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

_ATEN: Any = torch.ops.aten
# Beside views, what traces of no composite operator that is to stay consist of.
_ELEMENTARY = {
    _ATEN.sym_size.int,
    _ATEN.mean.dim,
    _ATEN.clone.default,
    _ATEN._to_copy.default,
    _ATEN._assert_tensor_metadata.default,
}


def decompose_operators_alone() -> None:
    """Change torch's exporter, if it is loaded."""
    module: Any = sys.modules.get("torch.onnx._internal.exporter._fx_passes")
    if module is not None and not hasattr(module.decompose_with_registry, "original"):
        module.decompose_with_registry = one_by_one(module.decompose_with_registry)


def one_by_one(original: Callable[..., Any]) -> Callable[..., Any]:
    """Decompose as `original` does; it gets the graphs that change what others read."""

    def decompose(program: Any, registry: Any) -> Any:
        table, composite, written = _decompositions(registry.opset_version)
        others = [n for n in program.graph.nodes if not _stays(n, table, composite)]
        if not others:
            return program
        operators = _without_side_effects(others, table, composite)
        if None in operators.values():
            return original(program, registry)
        # The dispatcher in Python keeps an open batch size open.
        fake_mode = _detect_fake_mode_from_gm(program.graph_module)
        with torch.no_grad(), fake_mode, enable_python_dispatcher():
            parts = {node: _trace(node, t, table) for node, t in operators.items()}
            again = [n for n, part in parts.items() if not _is_elementary(part, operators[n])]
            if again:
                with _override_composite_implicit_decomp(composite):
                    parts.update({node: _trace(node, operators[node], table) for node in again})
        made = [node for part in parts.values() for node in part.nodes]
        if any(n.op == "get_attr" or _has_no_function(n, written) for n in made):
            return original(program, registry)
        for node, part in parts.items():
            _replace(node, part, program.graph_signature)
        program.graph_module.recompile()
        return program

    decompose.original = original  # type: ignore[attr-defined]
    return decompose


@functools.cache
def _decompositions(opset_version: int) -> tuple[dict[Any, Any], dict[Any, Any], set[Any]]:
    """The exporter's decompositions, of composites (most stay), and what it writes."""
    exporter: Any = sys.modules["torch.onnx._internal.exporter._core"]
    decomp = exporter._fx_passes._decomp
    registry = exporter._registration.ONNXRegistry.from_torchlib(opset_version=opset_version)
    written = set(decomp.get_onnx_implemented_overloads(registry))
    table = decomp.create_onnx_friendly_decomposition_table(written)
    composite, others = _split_decomp_table_to_cia_and_python_decomp(table)
    return others, composite, written


def _stays(node: fx.Node, table: dict[Any, Any], composite: dict[Any, Any]) -> bool:
    """Find whether a node would be traced as itself."""
    target: Any = node.target
    if node.op in ("placeholder", "output") or target is operator.getitem:
        return True
    if not isinstance(target, torch._ops.OpOverload):
        of_numbers = getattr(target, "__module__", None) == "_operator"
        return of_numbers and not isinstance(node.meta["val"], torch.Tensor)
    if target in composite:
        return composite[target] is _special_op_to_preserve_cia
    return target not in table and not _is_cia_op(target) and _is_pure(node)


def _has_no_function(node: fx.Node, written: set[Any]) -> bool:
    """Find whether the exporter lacks a function for an operator, which a trace may then open."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target not in written


def _is_pure(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and not node.target._schema.is_mutable


def _without_side_effects(
    nodes: list[fx.Node], table: dict[Any, Any], composite: dict[Any, Any]
) -> dict[fx.Node, Any]:
    """The operators that compute the nodes' values and change none; None where there is none.

    One that changes a value in place has such a form where nothing else reads that value, under
    this name or another.
    """
    changed: set[fx.Node] = set()

    def is_new(value: Any) -> bool:
        if value in changed:
            return True
        if value.op != "call_function" or not isinstance(value.target, torch._ops.OpOverload):
            return False
        return _stays(value, table, composite) and not _is_view(value.target)

    def form(node: fx.Node) -> Any:
        if node.target is _ATEN.reshape.default and not all(
            isinstance(size, int) for size in node.meta["val"].shape
        ):  # traced alone it may fix an open batch size
            return None
        if _is_pure(node):
            return node.target
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.name.endswith("_"):
            return None
        value: Any = node.args[0]
        if list(value.users) != [node] or not is_new(value):
            return None
        changed.add(node)
        name = schema.name.removeprefix("aten::").removesuffix("_")
        return getattr(getattr(_ATEN, name, None), schema.overload_name or "default", None)

    return {node: form(node) for node in nodes}


def _trace(node: fx.Node, target: Any, table: dict[Any, Any]) -> fx.Graph:
    """Trace one operator; the inputs are the nodes among its arguments."""
    values, spec = pytree.tree_flatten((node.args, node.kwargs))
    nodes = [value for value in values if isinstance(value, fx.Node)]

    def call(*given: Any) -> Any:
        left = iter(given)
        filled = [next(left) if isinstance(value, fx.Node) else value for value in values]
        args, kwargs = pytree.tree_unflatten(filled, spec)
        return target(*args, **kwargs)

    graph: fx.Graph = make_fx(call, decomposition_table=table)(
        *(n.meta["val"] for n in nodes)
    ).graph
    return graph


def _is_elementary(part: fx.Graph, target: Any) -> bool:
    """Find whether a trace cannot be that of a composite operator which is to stay."""
    called: list[Any] = [n.target for n in part.nodes if n.op == "call_function"]
    return called == [target] or all(
        t in _ELEMENTARY or t.__module__ == "_operator" or _is_view(t) for t in called
    )


def _is_view(target: Any) -> bool:
    return any(result.alias_info for result in target._schema.returns)


def _replace(node: fx.Node, part: fx.Graph, signature: ExportGraphSignature) -> None:
    """Put a trace in the place of the operator, in the graph and in its signature."""
    values, _ = pytree.tree_flatten((node.args, node.kwargs))
    nodes = [value for value in values if isinstance(value, fx.Node)]
    known = dict(zip(part.find_nodes(op="placeholder"), nodes, strict=True))
    with node.graph.inserting_before(node):
        result: Any = node.graph.graph_copy(part, known)
    for new in set(known.values()) - set(nodes):
        new.meta = node.meta | new.meta
    single = isinstance(result, fx.Node)
    for old in [node] if single else list(node.users):
        new = result if single else result[old.args[1]]
        old.replace_all_uses_with(new)
        signature.replace_all_uses(old.name, new.name)
        if old is not node:
            node.graph.erase_node(old)
    node.graph.erase_node(node)
