"""The guard: a captured graph must do what the model does, in evaluation and in training.

Both run on the same inputs with the same random state. Compared are the results, the buffers
afterwards (statistics of batch norms), and which parameters get a gradient: two forwards each, and
no backward pass, for gradients are followed through autograd's graph.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from edgeailite.quantization.graph.behavior import (
    Behavior,
    Call,
    difference,
    named_tensors,
    observe,
)
from edgeailite.quantization.graph.calls import operation_of
from edgeailite.quantization.graph.hooks import HookCheck, HookError
from edgeailite.quantization.graph.leaves import computed_weights
from edgeailite.quantization.graph.model import BY_MODE, GraphModel, graph_of, module_of
from edgeailite.quantization.graph.operations import QUANTIZER
from edgeailite.quantization.graph.parting import Recorded
from edgeailite.quantization.graph.running import GraphRunner
from edgeailite.quantization.graph.structure import Example
from edgeailite.quantization.graph.value_types import is_known_not_to_be_float, type_of

if TYPE_CHECKING:
    from torch import fx


class TraceError(RuntimeError):
    """The model cannot be captured as a graph."""


@dataclass(frozen=True)
class Difference:
    """Between a model and its captured graph.

    Attributes:
        message: The difference.
        training: It was seen in training mode.
    """

    message: str
    training: bool


def _compared(wanted: Behavior, run: Callable[[], Behavior]) -> str | None:
    """Difference of what the graph does, or the error with which it fails."""
    try:
        found = run()
    except TraceError:
        raise
    except Exception as error:
        return f"it fails with {type(error).__name__}: {error}"
    return difference(wanted, found)


def _of_called_modules(wanted: Behavior, captured: GraphModel) -> Behavior:
    """Leave out the buffers of layers that no result needs: a graph does not run them."""
    read = {str(n.target) for n in graph_of(captured).nodes if n.op in ("call_module", "get_attr")}

    def is_read(name: str) -> bool:
        parts = name.split(".")
        return any(".".join(parts[:end]) in read for end in range(1, len(parts) + 1))

    return replace(wanted, buffers={n: b for n, b in wanted.buffers.items() if is_read(n)})


class Guard:
    """Compares a captured graph with its model, once.

    Args:
        model: The model.
        example: Inputs.

    Raises:
        ValueError: They do not pass through the model.

    Attributes:
        training: The model's behavior in training mode; None: it does not run in it.
        problem: The error with which it does not.
    """

    def __init__(self, model: nn.Module, example: Example) -> None:
        self.model, self.example = model, example

        call = _call(model)
        try:
            self.evaluation = observe(model, example, training=False, call=call)
        except Exception as error:
            raise ValueError(
                f"The example input (dummy_input, example_inputs) of shape {example.describe()} "
                f"does not pass through {type(model).__name__} ({error}). "
                "Give an input of the shape that the model is used with, batch included."
            ) from error
        self.training: Behavior | None = None
        self.problem = ""
        for inputs in (example, example.with_batch_of_two()):
            try:
                self.training = observe(model, inputs, training=True, call=call)
                self.training_example = inputs
                break
            except Exception as error:  # batch norm of one value, most likely
                self.problem = f"{type(error).__name__}: {error}"

    def compare(self, captured: GraphModel) -> Difference | None:
        """Run the captured graph; the types of its values are noted on the way.

        Args:
            captured: Graph over the modules of the model.

        Returns:
            The first difference; None: there is none.
        """
        message = _compared(self.evaluation, lambda: self.note_types(captured))
        if message is not None:
            return Difference(f"in evaluation mode {message}", training=False)
        if self.training is None:
            warnings.warn(
                f"{type(self.model).__name__} does not run in training mode on the example "
                f"({self.problem}): the captured graph was compared with it in evaluation mode "
                "alone.",
                stacklevel=5,
            )
            return None
        call, example = _call(captured), self.training_example
        wanted = _of_called_modules(self.training, captured)
        message = _compared(wanted, lambda: observe(captured, example, True, call))
        return Difference(f"in training mode {message}", training=True) if message else None

    def note_types(self, captured: GraphModel) -> Behavior:
        """Run a captured graph in evaluation mode; its nodes get the types of their values.

        Raises:
            TraceError: A hook of a layer changes its value.
        """
        hooks = HookCheck(lambda node: module_of(captured, node))

        def note(node: fx.Node, value: Any) -> None:
            hooks.after(node, value)
            node.meta["type"] = type_of(value)

        def noting(given: Example) -> Any:
            runner = GraphRunner(captured, note, hooks.before)
            try:
                result = runner.run(*positional(captured, given))
            except HookError as error:
                raise TraceError(str(error)) from error
            (output,) = graph_of(captured).find_nodes(op="output")
            return result[0] if output.meta.get(BY_MODE, False) else result

        return observe(captured, self.example, training=False, call=noting)

    def values_of(self, captured: GraphModel, training: bool) -> set[int]:
        """Values that a captured graph computes, to look for those of the model."""
        example = self.training_example if training else self.example
        with Recorded() as recorded, suppress(Exception):  # up to where it fails
            observe(captured, example, training, _call(captured))
        return recorded.values

    def first_without(self, values: set[int], wrong: Difference) -> str:
        """Name the first operation of the model whose value is not among `values`."""
        example = self.training_example if wrong.training else self.example
        with Recorded() as recorded:
            observe(self.model, example, wrong.training, _call(self.model))
        return recorded.first_without(values)


class WaitingGuard:
    """Compares a graph that was captured without an example with its model, on the first batch.

    Args:
        model: Before it is captured; copied, all but its tensors.
    """

    def __init__(self, model: nn.Module) -> None:
        try:
            self.model: nn.Module | None = _copy_of_modules(model)
        except Exception as error:
            self.model, self.problem = None, f"{type(error).__name__}: {error}"

    def with_graph(self, captured: GraphModel) -> WaitingGuard | None:
        """Take the graph, before it is prepared; None, with a warning, if that is impossible.

        Args:
            captured: The graph; copied, all but its tensors.
        """
        if self.model is None:
            warnings.warn(
                f"{type(captured).__name__} cannot be copied ({self.problem}), so the captured "
                "graph is not compared with it on the first batch. Give an example input: then it "
                "is compared at once.",
                stacklevel=5,
            )
            return None
        self.captured = _copy_of_modules(captured)
        return self

    def compare_first_batch(self, live: GraphModel, args: Any, kwargs: Any) -> None:
        """Compare on the first samples of a batch.

        Args:
            live: The prepared model, whose buffers may be on another device by now.
            args: Inputs.
            kwargs: Inputs by name.

        Raises:
            TraceError: The graph does not compute what the model does, or quantizes something that
                is no floating-point tensor.
        """
        assert self.model is not None
        buffers = dict(named_tensors(live, "_buffers"))
        for copied in (self.model, self.captured):
            for path, module in nn.Module.named_modules(copied):
                for name in module._buffers:
                    key = f"{path}.{name}" if path else name
                    if key in buffers:
                        module._buffers[name] = buffers[key]
        whole = Example(args, kwargs)
        try:
            guard = Guard(self.model, whole.with_two_samples())
        except Exception:  # its axes are no samples
            guard = Guard(self.model, whole)
        wrong = guard.compare(self.captured)
        if wrong is not None:
            place = guard.first_without(guard.values_of(self.captured, wrong.training), wrong)
            raise wrong_graph(self.model, "torch.fx", wrong, place, " or give an example input")
        _check_types(live, {n.name: n.meta.get("type") for n in graph_of(self.captured).nodes})

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle nothing: another process has no model to compare with."""
        return type(None), ()

    def __deepcopy__(self, memo: dict[int, Any]) -> WaitingGuard:
        """Copy the modules with the tensors that `memo` has for them."""
        new = WaitingGuard.__new__(WaitingGuard)
        memo[id(self)] = new
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new


def _copy_of_modules(model: Any) -> Any:
    """Copy a model; the parameters and buffers stay the very tensors."""
    tensors = [t for module in nn.Module.modules(model) for t in _tensors_of(module)]
    return copy.deepcopy(model, {id(t): t for t in tensors})


def _tensors_of(module: nn.Module) -> list[Tensor]:
    computed = [getattr(module, name) for name in computed_weights(module)]
    own = (*module._parameters.values(), *module._buffers.values(), *computed)
    return [tensor for tensor in own if tensor is not None]


def _check_types(live: GraphModel, types: dict[str, Any]) -> None:
    """Note the types of values; refuse quantizers of what is no floating-point tensor."""
    for node in graph_of(live).nodes:
        if node.name in types:
            node.meta["type"] = types[node.name]
    for node in graph_of(live).nodes:
        if operation_of(node) is QUANTIZER and is_known_not_to_be_float(node.all_input_nodes[0]):
            operand = node.all_input_nodes[0]
            raise TraceError(
                f"'{operand.name}' is no floating-point tensor but {operand.meta['type']}, which "
                "shows only as the model runs: inputs may be tensors, or dicts and lists of them "
                "if an example input is given. Pass it when wrapping the model."
            )


def wrong_graph(
    model: nn.Module, way: str, wrong: Difference, place: str, way_out: str = ""
) -> TraceError:
    """Error for a graph that does not compute what its model does."""
    return TraceError(
        f"The graph that {way} makes of {type(model).__name__} does not compute what the model "
        f"does: {wrong.message}.{place} Write that part without operations in place, hooks that "
        "change values, and choices by the values of tensors; or name its module in "
        f"leaf_modules{way_out}."
    )


def _call(model: nn.Module) -> Call:
    return lambda given: model(*given.args, **given.kwargs)


def positional(model: GraphModel, given: Example) -> list[Any]:
    """Inputs of a graph in the order of its placeholders; a missing one has its default."""
    rest = list(graph_of(model).find_nodes(op="placeholder"))[len(given.args) :]
    by_name = [
        given.kwargs[str(node.target)]
        if str(node.target) in given.kwargs
        else (node.args[0] if node.args else None)
        for node in rest
    ]
    return [*given.args, *by_name]
