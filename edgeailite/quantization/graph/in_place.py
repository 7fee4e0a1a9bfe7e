"""Operations in place, in a graph whose readers name the value that they mean.

In PyTorch ``relu_(x)`` changes every tensor that shares memory with ``x``. A graph has no memory:
each node that reads ``x``, or a view of it, after that must read the new value.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import fx


class InPlaceError(ValueError):
    """An operation in place whose effect the graph cannot hold."""


class Aliasing(ABC):
    """Knows which calls overwrite an operand, and which results share an operand's memory."""

    @abstractmethod
    def overwritten(self, node: fx.Node) -> fx.Node | None:
        """Return the operand that a call overwrites."""

    @abstractmethod
    def viewed(self, node: fx.Node) -> fx.Node | None:
        """Return the tensor whose memory, all or part of it, the result of a call shares."""

    @abstractmethod
    def put_back(self, view: fx.Node, base: fx.Node, value: fx.Node) -> fx.Node:
        """Make the node of `base` with `value` in the place that `view` shows.

        Args:
            view: The call that made the view.
            base: Present value of what it shows.
            value: New value of the view.

        Raises:
            InPlaceError: No operation is known that does.
        """

    @abstractmethod
    def is_split(self, node: fx.Node) -> bool:
        """Return True for a call that gives a tuple of views."""

    def updates(self, attribute: fx.Node) -> bool:
        """Return True if the graph may overwrite a parameter or buffer as it runs."""
        return False


def follow_in_place(graph: fx.Graph, aliasing: Aliasing) -> None:
    """Let every reader read the value that a tensor has when it is read.

    Args:
        graph: In the order of the calls; changed.
        aliasing: For the calls of this graph.

    Raises:
        InPlaceError: A parameter or buffer is overwritten that must not be, or no operation is
            known that puts a view's new value back.
    """
    _Memory(graph, aliasing).follow()


class _Memory:
    """Tensors that share memory, and their present values.

    Attributes:
        base: What each view shows.
        now: Node of the present value of those that were overwritten.
    """

    def __init__(self, graph: fx.Graph, aliasing: Aliasing) -> None:
        self.graph, self.aliasing = graph, aliasing
        self.base: dict[fx.Node, fx.Node] = {}
        self.now: dict[fx.Node, fx.Node] = {}
        self.copies: set[fx.Node] = set()  # results in place: all of what they show
        self.readers = {node: list(node.users) for node in graph.nodes}
        self.position = {node: i for i, node in enumerate(graph.nodes)}

    def follow(self) -> None:
        """Go through the calls in their order."""
        for node in list(self.graph.nodes):
            overwritten, viewed = self.aliasing.overwritten(node), self.aliasing.viewed(node)
            node.args = fx.map_arg(node.args, self._present)
            node.kwargs = fx.map_arg(dict(node.kwargs), self._present)
            if overwritten is not None:
                self._overwrite(node, overwritten)
                self.base[node] = overwritten
                self.copies.add(node)
            elif viewed is not None:
                self.base[node] = viewed

    def _present(self, node: fx.Node) -> fx.Node:
        return self.now.get(node, node)

    def _root(self, node: fx.Node) -> fx.Node:
        while node in self.base:
            node = self.base[node]
        return node

    def _overwrite(self, node: fx.Node, overwritten: fx.Node) -> None:
        root = self._root(overwritten)
        if root.op == "get_attr":
            if self.aliasing.updates(root):
                return  # its memory is the module's, and outlives the call
            raise InPlaceError(
                f"'{node.name}' overwrites '{root.target}', a parameter or buffer, in forward"
            )
        self.now[overwritten] = node
        others = [v for v in (root, *self.base) if self._root(v) is root and v is not overwritten]
        if not any(self._is_read_behind(other, node) for other in others):
            return
        path = self._write_through(node, overwritten)
        for other in others:
            if other not in path and self._is_read_behind(other, node):
                self._take_again(other)

    def _is_read_behind(self, value: fx.Node, node: fx.Node) -> bool:
        return any(self.position[r] > self.position[node] for r in self.readers[value])

    def _write_through(self, node: fx.Node, view: fx.Node) -> set[fx.Node]:
        """Give all that `view` is a part of its new value; return these nodes."""
        value, path = node, {view}
        self.last = node
        while view in self.base:
            base = self.base[view]
            if view not in self.copies:
                with self.graph.inserting_after(self.last):
                    value = self.aliasing.put_back(view, self._present(base), value)
                value.meta.update(node.meta)
                if "val" in base.meta:  # of all that the view is a part of
                    value.meta["val"] = base.meta["val"]
                self.last = value
            self.now[base] = value
            path.add(base)
            view = base
        return path

    def _take_again(self, view: fx.Node) -> None:
        """Take a view of the present value of what it shows."""
        if view in self.copies:
            self.now[view] = self._present(self.base[view])
            return
        operands = {operand: self._again(operand) for operand in view.all_input_nodes}
        with self.graph.inserting_after(self.last):
            self.last = self.graph.node_copy(view, operands.__getitem__)
        self.now[view] = self.last

    def _again(self, operand: fx.Node) -> fx.Node:
        """Operand of a view that is taken again; a tuple of views is taken again too."""
        if not self.aliasing.is_split(operand):
            return self._present(operand)
        with self.graph.inserting_after(self.last):
            self.last = self.graph.node_copy(operand, self._present)
        return self.last
