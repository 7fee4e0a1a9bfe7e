"""Run a graph operation by operation over all batches at once, with time to act in between."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from edgeailite.quantization.graph.model import GraphModel


class SweepStep:
    """One operation on all batches.

    Args:
        node: The operation.
        values: Results of the operations before that are still needed, by node.
        interpreter: Runs one operation.

    Attributes:
        node: The operation.
        outputs: Its result for each batch.
    """

    def __init__(
        self, node: fx.Node, values: dict[fx.Node, list[Any]], interpreter: fx.Interpreter
    ) -> None:
        self.node = node
        self._values, self._interpreter = values, interpreter
        self.outputs = self._evaluate()

    def inputs_of(self, node: fx.Node) -> list[Any]:
        """What the operation reads from `node`, for each batch."""
        return self._values[node]

    def recompute(self) -> None:
        """Run the operation again, after something that it reads has changed."""
        self.outputs = self._evaluate()

    def _evaluate(self) -> list[Any]:
        node = self.node
        count = len(next(iter(self._values.values())))
        results = []
        for index in range(count):

            def of_batch(n: fx.Node, index: int = index) -> Any:
                return self._values[n][index]

            args = fx.node.map_arg(node.args, of_batch)
            kwargs = fx.node.map_arg(node.kwargs, of_batch)
            results.append(getattr(self._interpreter, node.op)(node.target, args, kwargs))
        return results


@torch.no_grad()
def sweep(model: GraphModel, batches: Sequence[tuple[Any, ...]]) -> Iterator[SweepStep]:
    """Each operation once on all batches, in the order of the graph.

    What the caller changes at a step (a bias, a weight, and then ``recompute()``) counts for all
    operations behind it: the cost is that of one pass, where a pass per layer would be needed.

    Args:
        model: Prepared model, in the mode that it is to run in.
        batches: Inputs of the model, a tuple for each batch. All values that are still needed are
            kept for all of them: memory grows with their number.

    Yields:
        The steps; after each, its ``outputs`` go on to those behind.
    """
    last_use = {n: node for node in model.graph.nodes for n in node.all_input_nodes}
    values = input_values(model, batches)
    inputs = list(values)
    interpreter = fx.Interpreter(model, False, graph=model.graph)
    for node in model.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        step = SweepStep(node, values, interpreter)
        yield step
        values[node] = step.outputs
        for used in node.all_input_nodes:
            if last_use[used] is node and used not in inputs:
                del values[used]


def input_values(model: GraphModel, batches: Sequence[tuple[Any, ...]]) -> dict[fx.Node, list[Any]]:
    """What the graph's inputs are for each batch; those that are not given have their default."""
    inputs = [node for node in model.graph.nodes if node.op == "placeholder"]
    return {
        node: [batch[i] if i < len(batch) else _default(node) for batch in batches]
        for i, node in enumerate(inputs)
    }


def _default(node: fx.Node) -> Any:
    return node.args[0] if node.args else None


def as_batches(data: Iterable[Any], num_inputs: int, limit: int | None = None) -> list[tuple]:
    """Batches of a loader as tuples of the model's inputs, in memory.

    Args:
        data: Tensors, or tuples that begin with the model's inputs.
        num_inputs: How many inputs the model has.
        limit: How many batches to take; None: all.
    """
    found = []
    for batch in data:
        found.append((batch,) if isinstance(batch, Tensor) else tuple(batch)[:num_inputs])
        if len(found) == limit:
            break
    return found
