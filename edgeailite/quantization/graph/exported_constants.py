"""Constants of an exported graph: what depends on nothing is computed once."""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch._ops import OpOverload


def fold_constants(graph: fx.Graph, constants: dict[str, Tensor]) -> None:
    """Compute what depends on nothing, once; it becomes a buffer, and moves with the model.

    Args:
        graph: Changed.
        constants: Tensors that the graph reads, by name; added to.
    """
    known = {n for n in graph.find_nodes(op="get_attr") if n.target in constants}
    for node in list(graph.nodes):
        if node.op not in ("call_function", "call_method") or not _is_tensor(node):
            continue
        if any(operand not in known for operand in node.all_input_nodes) or _is_random(node):
            continue
        if not node.all_input_nodes and node.op != "call_function":
            continue
        value = _compute(node, constants)
        name = f"_constant_{len(constants)}"
        constants[name] = value
        with graph.inserting_before(node):
            read = graph.get_attr(name)
        read.meta.update(node.meta)
        known.add(read)
        node.replace_all_uses_with(read)


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def _is_random(node: fx.Node) -> bool:
    original = node.meta.get("operator")
    tags = original.tags if isinstance(original, OpOverload) else ()
    return torch.Tag.nondeterministic_seeded in tags


@torch.no_grad()
def _compute(node: fx.Node, constants: dict[str, Tensor]) -> Tensor:
    args, kwargs = fx.node.map_arg(
        (node.args, dict(node.kwargs)), lambda n: constants[str(n.target)]
    )
    if node.op == "call_method":
        value = getattr(args[0], str(node.target))(*args[1:], **kwargs)
    else:
        value = node.target(*args, **kwargs)  # type: ignore[operator]
    assert isinstance(value, Tensor)
    return value
