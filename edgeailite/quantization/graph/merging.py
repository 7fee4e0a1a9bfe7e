"""One graph for both modes, from a graph of each.

A captured graph holds the path that forward took: ``F.dropout(x, training=self.training)`` with the
flag's value, and nothing of what only the other mode does. Flags become questions to the module,
and what only training does (stochastic depth) becomes a :class:`TrainingOnly`.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import SequenceMatcher
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgeailite.quantization.graph.model import GraphModel, add_module_at, free_path, graph_of
from edgeailite.quantization.graph.modes import TrainingOnly, is_training


class _PathsPart(Exception):
    """The graphs of the two modes have no common form."""


def follow_mode(model: GraphModel, training: fx.Graph, constants: Mapping[str, Tensor]) -> bool:
    """Make the graph of a model, captured in evaluation mode, do what training mode does.

    Args:
        model: Its graph is changed.
        training: The graph of training mode.
        constants: Tensors that it reads and the model does not have, by name.

    Returns:
        False if forward takes a path in training that the graph cannot take too; it is then that of
        evaluation mode.
    """
    try:
        changes = _Comparison(model, training, constants).changes()
    except _PathsPart:
        return False
    for change in changes:
        change()
    return True


class _Comparison:
    """Finds the changes that let one graph follow the mode."""

    def __init__(
        self, model: GraphModel, training: fx.Graph, constants: Mapping[str, Tensor]
    ) -> None:
        self.model, self.constants = model, constants
        mine, others = list(graph_of(model).nodes), list(training.nodes)
        blocks = SequenceMatcher(
            None, [_key(n) for n in others], [_key(n) for n in mine], autojunk=False
        ).get_matching_blocks()
        self.same = {others[a + i]: mine[b + i] for a, b, size in blocks for i in range(size)}
        self.only: dict[tuple[fx.Node, fx.Node], fx.Node] = {}

    def changes(self) -> list[Any]:
        """Changes to make; none was made.

        Raises:
            _PathsPart: There is more to change than flags and tensors of one's own mode.
        """
        found: list[Any] = []
        for other, mine in self.same.items():
            if other.op == "get_attr":
                self._compare_attributes(str(other.target), str(mine.target))
            theirs, theirs_spec = _flat(other)
            own, own_spec = _flat(mine)
            if theirs_spec != own_spec:
                raise _PathsPart
            for place, (a, b) in enumerate(zip(theirs, own, strict=True)):
                change = self._change(mine, place, a, b)
                if change is not None:
                    found.append(change)
        if not any(n.op == "output" for n in self.same):
            raise _PathsPart
        return found

    def _compare_attributes(self, name: str, mine: str) -> None:
        if name not in self.constants:
            if name != mine:
                raise _PathsPart
        elif not torch.equal(self.constants[name], self.model.get_buffer(mine)):
            raise _PathsPart

    def _change(self, node: fx.Node, place: int, in_training: Any, here: Any) -> Any:
        """Change of one argument of a node; None: it is the same in both modes."""
        if isinstance(in_training, fx.Node) and isinstance(here, fx.Node):
            if self.same.get(in_training) is here:
                return None
            part = self._part(in_training)
            return lambda: _set(node, place, self._training_only(node, part, in_training, here))
        if here is False and in_training is True:
            return lambda: _set(node, place, _flag(self.model, node))
        if type(here) is type(in_training) and here == in_training:
            return None
        raise _PathsPart

    def _part(self, result: fx.Node) -> list[fx.Node]:
        """Calls that only training makes for a value, in their order."""
        found, pending = set(), [result]
        while pending:
            node = pending.pop()
            if node in self.same or node in found:
                continue
            if node.op not in ("call_function", "call_method"):
                raise _PathsPart
            found.add(node)
            pending.extend(node.all_input_nodes)
        return [node for node in result.graph.nodes if node in found]

    def _training_only(
        self, node: fx.Node, part: list[fx.Node], result: fx.Node, here: fx.Node
    ) -> fx.Node:
        """Node that is `result` in training, and `here` in evaluation; made once."""
        known = self.only.get((result, here))
        if known is not None:
            return known
        graph, operands = fx.Graph(), [o for n in part for o in n.all_input_nodes if o in self.same]
        operands = list(dict.fromkeys(operands))
        copies = {o: graph.placeholder(f"operand_{i}") for i, o in enumerate(operands)}
        for call in part:
            copies[call] = graph.node_copy(call, lambda n: copies[n])
        graph.output(copies[result])
        path = free_path(self.model, "training_only")
        add_module_at(self.model, path, TrainingOnly(fx.GraphModule(nn.Module(), graph)))
        flag = _flag(self.model, result, before=node)
        with graph_of(self.model).inserting_before(node):
            made = graph_of(self.model).call_module(
                path, (here, flag, *(self.same[o] for o in operands))
            )
        made.meta["owner"] = result.meta.get("owner", "")
        self.only[result, here] = made
        return made


def _key(node: fx.Node) -> Any:
    constant = node.op == "get_attr" and "constant" in str(node.target)
    return node.op, "constant" if constant else node.target


def _flat(node: fx.Node) -> tuple[list[Any], Any]:
    """Arguments of a node as a list, and their structure."""
    values: list[Any] = []

    def take(value: Any) -> int:
        values.append(value)
        return len(values)

    return values, fx.node.map_aggregate((node.args, dict(node.kwargs)), take)


def _set(node: fx.Node, place: int, value: fx.Node) -> None:
    """Put `value` in the place of the argument of this number, as of :func:`_flat`."""
    count = -1

    def put(old: Any) -> Any:
        nonlocal count
        count += 1
        return value if count == place else old

    args, kwargs = fx.node.map_aggregate((node.args, dict(node.kwargs)), put)
    node.args, node.kwargs = args, kwargs


def _flag(model: GraphModel, node: fx.Node, before: fx.Node | None = None) -> fx.Node:
    """A node that says whether the module whose forward calls `node` is in training mode."""
    path = node.meta.get("owner", "")
    if not path:  # a graph cannot name the model itself: a child of its own stands for it
        path = "_mode"
        if "_mode" not in model._modules:
            model.add_module(path, nn.Identity())
    with graph_of(model).inserting_before(before or node):
        return graph_of(model).call_function(is_training, (graph_of(model).get_attr(path),))
