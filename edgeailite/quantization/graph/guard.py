"""The guard: a captured graph must do what the model does, in evaluation and in training.

Both run on the same inputs with the same random state. Compared are the results, the buffers
afterwards (statistics of batch norms), and which parameters get a gradient: two forwards each, and
no backward pass, for gradients are followed through autograd's graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgeailite.quantization.graph.model import GraphModel, graph_of
from edgeailite.quantization.graph.modes import buffers_kept, in_mode
from edgeailite.quantization.graph.parting import Recorded
from edgeailite.quantization.graph.running import GraphRunner
from edgeailite.quantization.graph.structure import Example, flatten
from edgeailite.quantization.graph.value_types import type_of

if TYPE_CHECKING:
    from torch import fx

_SEED = 0
# Largest difference of results, in units of the last place of the largest value: kernels that sum
# in another order, as where attention is opened, differ by so much.
_ROUNDING = 256.0

Call = Callable[[Example], Any]


@dataclass(frozen=True)
class Behavior:
    """Result and effects of a model with an example, in one mode.

    Attributes:
        structure: Of the result, without its tensors.
        tensors: Of the result.
        buffers: Buffers afterwards, by name.
        learning: Names of the parameters that the result has a gradient for; in training only.
    """

    structure: Any
    tensors: list[Tensor]
    buffers: dict[str, Tensor]
    learning: frozenset[str]


@dataclass(frozen=True)
class Difference:
    """Between a model and its captured graph.

    Attributes:
        message: The difference.
        training: It was seen in training mode.
    """

    message: str
    training: bool


def observe(model: nn.Module, example: Example, training: bool, call: Call) -> Behavior:
    """Run a model once; buffers, modes and the random state are as before at the end.

    Args:
        model: Whose parameters and buffers are looked at.
        example: Inputs; copied.
        training: Mode.
        call: Runs the model.
    """
    with in_mode(model, training), _alone(model, example), torch.set_grad_enabled(training):
        tensors, structure = flatten(call(example.copied()))
        buffers = {name: buffer.clone() for name, buffer in _named(model, "_buffers")}
        learning = _learning(model, tensors) if training else frozenset()
    return Behavior(structure, [t.detach() for t in tensors], buffers, learning)


@contextmanager
def _alone(model: nn.Module, example: Example) -> Iterator[None]:
    """Leave no trace: neither in buffers nor in the random state; no autocast from outside."""
    devices = {t.device for t in example.tensors}
    kind = next(iter(devices)).type if devices else "cpu"
    accelerators = [d for d in devices if d.type != "cpu"]
    with torch.random.fork_rng(devices=accelerators, device_type=kind if accelerators else "cuda"):
        torch.manual_seed(_SEED)
        with torch.autocast(kind, enabled=False), buffers_kept(model):
            yield


def _named(model: nn.Module, kind: str) -> Iterator[tuple[str, Tensor]]:
    for path, module in model.named_modules():
        for name, tensor in getattr(module, kind).items():
            if tensor is not None:
                yield f"{path}.{name}" if path else name, tensor


def _learning(model: nn.Module, tensors: list[Tensor]) -> frozenset[str]:
    """Parameters that autograd reaches from the results."""
    names = {id(parameter): name for name, parameter in _named(model, "_parameters")}
    pending = [t.grad_fn for t in tensors if t.grad_fn is not None]
    seen, found = set(pending), set()
    while pending:
        function = pending.pop()
        variable = getattr(function, "variable", None)
        if variable is not None and id(variable) in names:
            found.add(names[id(variable)])
        for following, _ in function.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                pending.append(following)
    return frozenset(found)


def difference(wanted: Behavior, found: Behavior) -> str | None:
    """Say in what two behaviors differ; None: in nothing but rounding."""
    if wanted.structure != found.structure:
        return f"the result is {found.structure}, it should be {wanted.structure}"
    for i, (one, other) in enumerate(zip(wanted.tensors, found.tensors, strict=True)):
        message = _tensor_difference(one, other)
        if message:
            return f"result {i} {message}" if len(wanted.tensors) > 1 else f"the result {message}"
    for name, one in wanted.buffers.items():
        message = _tensor_difference(one, found.buffers[name])
        if message:
            return f"buffer '{name}' {message} afterwards"
    if wanted.learning != found.learning:
        more, less = found.learning - wanted.learning, wanted.learning - found.learning
        parts = (("a gradient for", more), ("no gradient for", less))
        return "there is " + " and ".join(f"{what} {sorted(n)[:3]}" for what, n in parts if n)
    return None


def _tensor_difference(wanted: Tensor, found: Tensor) -> str | None:
    if wanted.shape != found.shape:
        return f"has shape {tuple(found.shape)}, not {tuple(wanted.shape)}"
    if wanted.dtype != found.dtype:
        return f"has dtype {found.dtype}, not {wanted.dtype}"
    if torch.equal(wanted, found) or wanted.numel() == 0:
        return None
    if not wanted.is_floating_point():
        return "differs"
    distance = (wanted.double() - found.double()).abs()
    distance[(wanted == found) | (wanted.isnan() & found.isnan())] = 0
    largest = (
        wanted.abs()[wanted.isfinite()].max() if wanted.isfinite().any() else wanted.new_ones(())
    )
    units = float(distance.max() / (largest.double() * torch.finfo(wanted.dtype).eps + 1e-300))
    if units <= _ROUNDING:
        return None
    return (
        f"differs by up to {float(distance.max()):.3g}, its largest value is {float(largest):.3g}"
    )


class Guard:
    """Compares a captured graph with its model, once.

    Args:
        model: The model.
        example: Inputs.

    Attributes:
        training: The model's behavior in training mode; None: it does not run in it.
        unguarded: Why it does not.
    """

    def __init__(self, model: nn.Module, example: Example) -> None:
        self.model, self.example = model, example

        call = _call(model)
        self.evaluation = observe(model, example, training=False, call=call)
        self.training: Behavior | None = None
        self.unguarded = ""
        for inputs in (example, example.with_batch_of_two()):
            try:
                self.training = observe(model, inputs, training=True, call=call)
                self.training_example = inputs
                break
            except Exception as error:  # batch norm of one value, most likely
                self.unguarded = f"{type(error).__name__}: {error}"

    def compare(self, captured: GraphModel, in_training: bool = True) -> Difference | None:
        """Run the captured graph; the types of its values are noted on the way.

        Args:
            captured: Graph over the modules of the model.
            in_training: Compare in training mode too.

        Returns:
            The first difference; None: there is none.
        """

        def noting(given: Example) -> Any:
            return GraphRunner(captured, _note_type).run(*positional(captured, given))

        found = observe(captured, self.example, training=False, call=noting)
        message = difference(self.evaluation, found)
        if message is not None:
            return Difference(f"in evaluation mode {message}", training=False)
        if not in_training or self.training is None:
            return None
        found = observe(captured, self.training_example, training=True, call=_call(captured))
        message = difference(self.training, found)
        return Difference(f"in training mode {message}", training=True) if message else None

    def values_of(self, captured: GraphModel, training: bool) -> set[int]:
        """Values that a captured graph computes, to look for those of the model."""
        example = self.training_example if training else self.example
        with Recorded() as recorded:
            observe(captured, example, training, _call(captured))
        return recorded.values

    def first_without(self, values: set[int], wrong: Difference) -> str:
        """Name the first operation of the model whose value is not among `values`."""
        example = self.training_example if wrong.training else self.example
        with Recorded() as recorded:
            observe(self.model, example, wrong.training, _call(self.model))
        return recorded.first_without(values)


def _call(model: nn.Module) -> Call:
    return lambda given: model(*given.args, **given.kwargs)


def _note_type(node: fx.Node, value: Any) -> None:
    node.meta["type"] = type_of(value)


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
