"""Run a graph operation by operation, with a look at every value."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from edgeailite.quantization.graph.model import graph_of
from edgeailite.quantization.graph.modes import in_mode

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel

# Called with an operation and the values that it reads.
Before = Callable[[fx.Node, list[Any]], None]
# Called with an operation and its result.
After = Callable[[fx.Node, Any], None]


class GraphRunner(fx.Interpreter):
    """Run the graph of a model and call back at every operation.

    Args:
        model: Runs in the mode that it is in.
        after: Called with each operation and its result.
        before: Called with each operation and the values that it reads, one for each of
            ``node.all_input_nodes``, before the operation can overwrite them.
    """

    def __init__(
        self, model: GraphModel, after: After | None = None, before: Before | None = None
    ) -> None:
        super().__init__(model, graph=graph_of(model))
        self.extra_traceback = False
        self._after, self._before = after, before

    def run_node(self, n: fx.Node) -> Any:
        """Run one operation of :meth:`run`."""
        if self._before is not None:
            self._before(n, [self.env[source] for source in n.all_input_nodes])
        value = super().run_node(n)
        if self._after is not None:
            self._after(n, value)
        return value

    def compute(self, node: fx.Node, value_of: Callable[[fx.Node], Any]) -> Any:
        """Run one operation on given values, without a callback.

        Args:
            node: The operation.
            value_of: Gives the value of each node that it reads.
        """
        args = fx.node.map_arg(node.args, value_of)
        kwargs = fx.node.map_arg(node.kwargs, value_of)
        return getattr(self, node.op)(node.target, args, kwargs)


def parameter_value(model: GraphModel, node: fx.Node) -> Any:
    """Compute a value that depends on parameters and buffers alone.

    A parametrization computes it as in evaluation: training would change its buffers.
    """
    runner = GraphRunner(model)
    if node.op == "call_module":
        with in_mode(model.get_submodule(str(node.target)), training=False):
            return runner.compute(node, lambda operand: parameter_value(model, operand))
    return runner.compute(node, lambda operand: parameter_value(model, operand))


@torch.no_grad()
def node_values(
    model: GraphModel, inputs: Sequence[Any], wanted: Collection[fx.Node]
) -> dict[fx.Node, Any]:
    """Return the values of some nodes from a run of the graph."""
    values: dict[fx.Node, Any] = {}

    def keep(node: fx.Node, value: Any) -> None:
        if node in wanted:
            values[node] = value

    GraphRunner(model, keep).run(*inputs)
    return values


@torch.no_grad()
def value_shapes(model: GraphModel, example_inputs: Sequence[Tensor]) -> dict[fx.Node, torch.Size]:
    """Return the shape of every value that is one tensor, from a run of the graph.

    Args:
        model: In evaluation mode.
        example_inputs: Inputs to run it with.

    Raises:
        ValueError: The example does not pass through the model.
    """
    shapes: dict[fx.Node, torch.Size] = {}

    def measure(node: fx.Node, value: Any) -> None:
        if isinstance(value, Tensor):
            shapes[node] = value.shape

    try:
        GraphRunner(model, measure).run(*example_inputs)
    except Exception as error:
        given = ", ".join(str(tuple(x.shape)) for x in example_inputs)
        raise ValueError(
            f"The example input of shape {given} does not pass through the model ({error}). "
            "Give an input of the shape that the model is used with, batch included."
        ) from error
    return shapes


class NodeRun:
    """One operation of a :func:`sweep`, computed on all batches.

    Args:
        node: The operation.
        values: Results of the operations before that are still needed, by node.
        runner: Computes one operation.

    Attributes:
        node: The operation.
        outputs: Its result for each batch.
    """

    def __init__(
        self, node: fx.Node, values: dict[fx.Node, list[Any]], runner: GraphRunner
    ) -> None:
        self.node = node
        self._values, self._runner = values, runner
        self.outputs = self._compute()

    def values_of(self, node: fx.Node) -> list[Any]:
        """Return the value that the operation reads from `node`, for each batch."""
        return self._values[node]

    def recompute(self) -> None:
        """Run the operation again, after something that it reads has changed."""
        self.outputs = self._compute()

    def _compute(self) -> list[Any]:
        results = []
        for index in range(len(next(iter(self._values.values())))):

            def of_batch(node: fx.Node, index: int = index) -> Any:
                return self._values[node][index]

            results.append(self._runner.compute(self.node, of_batch))
        return results


@torch.no_grad()
def sweep(model: GraphModel, batches: Sequence[tuple[Any, ...]]) -> Iterator[NodeRun]:
    """Run each operation once on all batches, in the order of the graph.

    A change that the caller makes in between (a bias, a weight, and then ``recompute()``) counts
    for all operations behind it. The cost is that of one pass, not of one pass per layer.

    Args:
        model: Prepared model, in the mode that it is to run in.
        batches: Inputs of the model, a tuple for each batch. All values that are still needed are
            kept for all of them: memory grows with their number.

    Yields:
        Each operation with its ``outputs``, which the operations behind it read.
    """
    last_use = {n: node for node in graph_of(model).nodes for n in node.all_input_nodes}
    values = input_values(model, batches)
    inputs = list(values)
    runner = GraphRunner(model)
    for node in graph_of(model).nodes:
        if node.op in ("placeholder", "output"):
            continue
        run = NodeRun(node, values, runner)
        yield run
        values[node] = run.outputs
        for used in node.all_input_nodes:
            if last_use[used] is node and used not in inputs:
                del values[used]


def input_values(model: GraphModel, batches: Sequence[tuple[Any, ...]]) -> dict[fx.Node, list[Any]]:
    """Return the values of the graph's inputs for each batch; a missing one has its default."""
    inputs = [node for node in graph_of(model).nodes if node.op == "placeholder"]
    return {
        node: [batch[i] if i < len(batch) else _default(node) for batch in batches]
        for i, node in enumerate(inputs)
    }


def _default(node: fx.Node) -> Any:
    return node.args[0] if node.args else None


def iterate_batches(
    data: Iterable[Any], num_inputs: int, limit: int | None = None
) -> Iterator[tuple[Any, ...]]:
    """Yield the batches of a loader as tuples of the model's inputs.

    Args:
        data: Tensors, dicts that are an input, or tuples that begin with the model's inputs.
        num_inputs: Number of the model's inputs.
        limit: Largest number of batches to take; None: all.
    """
    for count, batch in enumerate(data, 1):
        yield (batch,) if isinstance(batch, Tensor | Mapping) else tuple(batch)[:num_inputs]
        if count == limit:
            break


def as_batches(
    data: Iterable[Any], num_inputs: int, limit: int | None = None
) -> list[tuple[Any, ...]]:
    """Return the batches of :func:`iterate_batches`, in memory."""
    return list(iterate_batches(data, num_inputs, limit))
