"""One graph for both modes, from a graph of each.

A captured graph holds the path that forward took: ``F.dropout(x, training=self.training)`` with the
flag's value, and nothing of what only the other mode does. Flags become questions to the module,
a step that only training does (stochastic depth) becomes a :class:`TrainingOnly`, and a result that
only training has (auxiliary heads, a detector's raw outputs) is computed by calls of its own, which
stay in float.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import SequenceMatcher
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from edgeailite.quantization.graph.model import (
    BY_MODE,
    TRAINING_ONLY,
    GraphModel,
    add_module_at,
    attribute,
    free_path,
    graph_of,
)
from edgeailite.quantization.graph.modes import TrainingOnly, is_training, rate_in_training

Change = Callable[[], None]


class PathsDiffer(Exception):
    """Training calls a layer on other values than evaluation does."""


class _Differs(Exception):
    """Two calls are not one call, whatever the mode."""


def follow_mode(model: GraphModel, training: fx.Graph, constants: Mapping[str, Tensor]) -> None:
    """Make the graph of a model, captured in evaluation mode, do what training mode does.

    Args:
        model: Its graph is changed.
        training: The graph of training mode.
        constants: Tensors that it reads and the model does not have, by name.

    Raises:
        PathsDiffer: Training calls a layer with parameters on other values than evaluation does.
    """
    _Merger(model, training, constants).merge()


class _Merger:
    """Finds the calls that both graphs make, and adds those that only training makes.

    Attributes:
        same: For each call of training that evaluation makes too, that of evaluation.
        only: Nodes of values that differ, by the values of training and of evaluation.
    """

    def __init__(
        self, model: GraphModel, training: fx.Graph, constants: Mapping[str, Tensor]
    ) -> None:
        self.model, self.training, self.constants = model, training, constants
        self.graph = graph_of(model)
        self.same: dict[fx.Node, fx.Node] = {}
        self.only: dict[tuple[fx.Node, fx.Node], fx.Node] = {}

    def merge(self) -> None:
        """Compare in the order of the calls, then change what differs."""
        changes: list[Change] = []
        for other, mine in self._alike():
            try:
                changes += self._changes(other, mine)
            except _Differs:
                continue
            self.same[other] = mine
        for change in changes:
            change()
        self._add_result()

    def _alike(self) -> list[tuple[fx.Node, fx.Node]]:
        """Calls of the same function or module at the same place of the order."""
        others = [n for n in self.training.nodes if n.op != "output"]
        mine = [n for n in self.graph.nodes if n.op != "output"]
        keys = [_key(n) for n in others], [_key(n) for n in mine]
        blocks = SequenceMatcher(None, *keys, autojunk=False).get_matching_blocks()
        return [(others[a + i], mine[b + i]) for a, b, size in blocks for i in range(size)]

    def _changes(self, other: fx.Node, mine: fx.Node) -> list[Change]:
        """Changes that make one call of two.

        Raises:
            _Differs: There are none.
        """
        if other.op == "get_attr":
            self._compare_attributes(str(other.target), str(mine.target))
        theirs, theirs_structure = _flat(other)
        own, own_structure = _flat(mine)
        if theirs_structure != own_structure:
            raise _Differs
        pairs = enumerate(zip(theirs, own, strict=True))
        found = (self._change(mine, place, a, b) for place, (a, b) in pairs)
        return [change for change in found if change is not None]

    def _compare_attributes(self, name: str, mine: str) -> None:
        if name not in self.constants:
            if name != mine:
                raise _Differs
            return
        buffer = self.model._buffers.get(mine)
        if buffer is None or not torch.equal(self.constants[name], buffer):
            raise _Differs

    def _change(self, node: fx.Node, place: int, in_training: Any, here: Any) -> Change | None:
        """Change of one argument of a node; None: it is the same in both modes."""
        if isinstance(in_training, fx.Node) and isinstance(here, fx.Node):
            if self.same.get(in_training) is here:
                return None
            part = self._step_from(in_training, here)
            return lambda: _set(node, place, self._training_only(node, part, in_training, here))
        if here is False and in_training is True:
            return lambda: _set(node, place, _flag(self.model, node))
        if type(here) is type(in_training) and here == in_training:
            return None
        if _is_dropout_of_attention(node, here, in_training):
            return lambda: _set(node, place, _flag(self.model, node, rate=in_training))
        raise _Differs

    def _step_from(self, result: fx.Node, here: fx.Node) -> list[fx.Node]:
        """Functions that only training calls to make `result` of `here`, in their order."""
        found, pending, starts = set(), [result], set()
        while pending:
            node = pending.pop()
            if node in self.same:
                starts.add(self.same[node])
            elif node not in found:
                if node.op not in ("call_function", "call_method"):
                    raise _Differs
                found.add(node)
                pending.extend(node.all_input_nodes)
        if here not in starts:
            raise _Differs
        return [node for node in self.training.nodes if node in found]

    def _training_only(
        self, node: fx.Node, part: list[fx.Node], result: fx.Node, here: fx.Node
    ) -> fx.Node:
        """Node that is `result` in training, and `here` in evaluation; made once."""
        known = self.only.get((result, here))
        if known is not None:
            return known
        reads = dict.fromkeys(o for n in part for o in n.all_input_nodes if o in self.same)
        graph = fx.Graph()
        copies = {o: graph.placeholder(f"operand_{i}") for i, o in enumerate(reads)}
        for call in part:
            copies[call] = graph.node_copy(call, copies.__getitem__)
        graph.output(copies[result])
        path = free_path(self.model, "training_only")
        add_module_at(self.model, path, TrainingOnly(fx.GraphModule(nn.Module(), graph)))
        flag = _flag(self.model, result, before=node)
        with self.graph.inserting_before(node):
            operands = (here, flag, *(self.same[o] for o in reads))
            made = self.graph.call_module(path, operands)
        made.meta["owner"] = result.meta.get("owner", "")
        self.only[result, here] = made
        return made

    # ---- a result of its own ----

    def _add_result(self) -> None:
        """Add the calls that the result of training needs, if it is another one."""
        (theirs,) = self.training.find_nodes(op="output")
        (own,) = self.graph.find_nodes(op="output")
        wanted, pending = set(), list(theirs.all_input_nodes)
        while pending:
            node = pending.pop()
            if node not in wanted:
                wanted.add(node)
                pending.extend(() if node in self.same else node.all_input_nodes)
        last, nodes = next(iter(self.graph.nodes)), dict(self.same)
        for node in self.training.nodes:
            if node in self.same:
                last = max(last, self.same[node])
            elif node in wanted:
                last = nodes[node] = self._add(node, nodes, last)
        self._check_layers([n for n in nodes if n not in self.same])
        result = fx.map_arg(theirs.args[0], nodes.__getitem__)
        if _as_text(result) != _as_text(own.args[0]):
            own.args = ((own.args[0], result),)
            own.meta[BY_MODE] = True

    def _check_layers(self, added: list[fx.Node]) -> None:
        """Refuse a layer that would run once for each mode: training would not be quantized."""
        in_both = set(self.same.values())
        own = {
            name
            for node in self.graph.nodes
            if node not in in_both and not node.meta.get(TRAINING_ONLY, False)
            for name in self._parameters_of(node)
        }
        for node in added:
            shared = own.intersection(self._parameters_of(node))
            if shared:
                raise PathsDiffer(
                    f"in training mode it calls '{sorted(shared)[0]}' on other values than in "
                    "evaluation mode, and one graph is quantized"
                )

    def _parameters_of(self, node: fx.Node) -> list[str]:
        """Layer with parameters that a node calls, or parameters that it reads."""
        if node.op == "call_module":
            layer = self.model.get_submodule(str(node.target))
            return [str(node.target)] if any(True for _ in nn.Module.parameters(layer)) else []
        read = [str(n.target) for n in node.all_input_nodes if n.op == "get_attr"]
        constants = self.constants.keys() | self.model._buffers.keys()
        return [
            name
            for name in read
            if name not in constants and isinstance(attribute(self.model, name), nn.Parameter)
        ]

    def _add(self, node: fx.Node, nodes: dict[fx.Node, fx.Node], last: fx.Node) -> fx.Node:
        with self.graph.inserting_after(last):
            added = self.graph.node_copy(node, nodes.__getitem__)
        added.meta[TRAINING_ONLY] = True
        if node.op == "get_attr" and node.target in self.constants:
            name = free_path(self.model, "_constant")
            constant = self.constants[str(node.target)]
            self.model.register_buffer(name, constant, persistent=False)
            added.target = name
        return added


def _as_text(result: Any) -> str:
    return str(fx.map_arg(result, lambda node: node))


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


def _is_dropout_of_attention(node: fx.Node, here: Any, in_training: Any) -> bool:
    """Return True for the one argument of attention that may be 0 in evaluation alone."""
    differs = here == 0 and isinstance(in_training, float)
    return differs and node.target is F.scaled_dot_product_attention


def _flag(
    model: GraphModel, node: fx.Node, before: fx.Node | None = None, rate: float | None = None
) -> fx.Node:
    """A node that says whether the module whose forward calls `node` is in training mode.

    With a `rate`: that has the rate in training mode, and 0 else.
    """
    path = node.meta.get("owner", "")
    if not path:  # a graph cannot name the model itself: a child of its own stands for it
        path = "_mode"
        if "_mode" not in model._modules:
            model.add_module(path, nn.Identity())
    with graph_of(model).inserting_before(before or node):
        module = graph_of(model).get_attr(path)
        if rate is not None:
            return graph_of(model).call_function(rate_in_training, (module, rate))
        return graph_of(model).call_function(is_training, (module,))
