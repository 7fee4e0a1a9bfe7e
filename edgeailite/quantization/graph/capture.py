"""From a module to a graph: by tracing, where that keeps the function; else by ``torch.export``."""

from __future__ import annotations

import traceback
import warnings
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from edgeailite.quantization.graph.exported import export
from edgeailite.quantization.graph.guard import (
    Guard,
    TraceError,
    WaitingGuard,
    wrong_graph,
)
from edgeailite.quantization.graph.hooks import has_forward_hooks, own_hooks_watched
from edgeailite.quantization.graph.leaves import (
    Leaves,
    has_computed_weight,
    is_batch_norm_with_activation,
)
from edgeailite.quantization.graph.merging import PathsDiffer, follow_mode
from edgeailite.quantization.graph.model import (
    GraphModel,
    Way,
    as_graph_model,
    graph_of,
    program_of,
    tidy,
)
from edgeailite.quantization.graph.structure import Example
from edgeailite.quantization.graph.tracing import (
    TracingFailed,
    trace,
    unused_defaults,
)
from edgeailite.quantization.graph.twins import make_twin, replace_modules

_ENGINE = Path(__file__).parent
_LIBRARY = Path(torch.__file__).parent


def capture(
    model: nn.Module,
    leaf_modules: Iterable[str | type[nn.Module]] = (),
    example: Example | None = None,
) -> GraphModel:
    """Make a graph of `model`, by ``torch.fx`` or by ``torch.export``, that computes the same.

    Args:
        model: Any module; the graph shares its modules. timm's batch norms with activation become
            plain ones in it. A :class:`GraphModel` is returned as it is.
        leaf_modules: Paths or types that are called as they are; they stay in float.
        example: Inputs. The graph is compared with the model on them, and its values have types.
            None: ``torch.export`` is not tried; arguments with a default keep it.

    Returns:
        Graph over the same modules, its calls read, without dead code.

    Raises:
        TraceError: Neither way gives a graph that computes what the model does. Names the module's
            path, the source line, and the way out.
    """
    if isinstance(model, GraphModel):
        if example is not None:
            Guard(model, example).note_types(model)
        return model
    leaves = Leaves(leaf_modules)
    if example is None:
        waiting = WaitingGuard(model)
        attempt = _by_tracing(model, leaves, None)
        captured = _finish(model, attempt, leaves)
        program_of(captured).guard = waiting.with_graph(captured)
        return captured
    guard = Guard(model, example)
    problems: list[TraceError] = []
    children = dict(model._modules)
    for way in (_by_tracing, _by_export):
        try:
            attempt = way(model, leaves, example)
        except TraceError as error:
            problems.append(error)
            continue
        wrong = guard.compare(attempt.captured)
        if wrong is None:
            return _finish(model, attempt, leaves)
        values = guard.values_of(attempt.captured, wrong.training)
        replace_modules(model, {twin: own for own, twin in attempt.twins.items()})
        model._modules.clear()  # children that the graph needed: a Sequential would run them
        model._modules.update(children)
        place = guard.first_without(values, wrong)
        problems.append(wrong_graph(model, program_of(attempt.captured).way, wrong, place))
    raise TraceError(" ".join(str(problem) for problem in problems)) from problems[0]


@dataclass
class _Attempt:
    """A graph of a model, not yet compared with it.

    Attributes:
        captured: The graph, over the model's modules.
        twins: Modules that took the place of the model's own.
    """

    captured: GraphModel
    twins: dict[nn.Module, nn.Module]


def _by_tracing(model: nn.Module, leaves: Leaves, example: Example | None) -> _Attempt:
    num_inputs = None if example is None else len(example.args)
    defaults = unused_defaults(model, num_inputs, () if example is None else tuple(example.kwargs))
    try:
        with own_hooks_watched(model) as changing:
            training = trace(model, leaves, defaults, training=True)
            evaluation = trace(model, leaves, defaults, training=False)
    except TracingFailed as failed:
        raise TraceError(_failure(model, failed, example)) from failed
    batch_norms = [m for m in nn.Module.modules(model) if is_batch_norm_with_activation(m)]
    twins: dict[nn.Module, nn.Module] = {m: make_twin(m, nn.BatchNorm2d) for m in batch_norms}
    return _attempt(model, "torch.fx", *evaluation, *training, twins, changing)


def _by_export(model: nn.Module, leaves: Leaves, example: Example) -> _Attempt:
    with own_hooks_watched(model) as changing:
        try:
            training = export(model, leaves, example, training=True)
        except Exception:  # batch norm of one value, most likely
            training = None
        try:
            evaluation = export(model, leaves, example, training=False)
        except Exception as error:
            raise TraceError(f"torch.export fails too: {_first_line(error)}") from error
    batch_norms = [m for m in nn.Module.modules(model) if is_batch_norm_with_activation(m)]
    twins: dict[nn.Module, nn.Module] = {m: make_twin(m, nn.BatchNorm2d) for m in batch_norms}
    other = training or evaluation
    both = (evaluation.graph, evaluation.constants, other.graph, other.constants)
    attempt = _attempt(model, "torch.export", *both, twins, changing)
    program_of(attempt.captured).sizes = evaluation.sizes
    return attempt


def _attempt(
    model: nn.Module,
    way: Way,
    graph: fx.Graph,
    constants: dict[str, Tensor],
    training: fx.Graph,
    training_constants: dict[str, Tensor],
    twins: dict[nn.Module, nn.Module],
    changing_hooks: set[int],
) -> _Attempt:
    replace_modules(model, twins)
    captured = as_graph_model(model, graph)
    program_of(captured).way = way
    for name in ("_forward_hooks", "_forward_pre_hooks"):  # the others are part of the graph
        hooks = vars(model)[name].items()
        looking_on = OrderedDict((n, hook) for n, hook in hooks if n not in changing_hooks)
        captured.__dict__[name] = looking_on
    for name, constant in constants.items():
        # An expanded one could not be put back after a comparison.
        captured.register_buffer(name, constant.contiguous(), persistent=False)
    try:
        follow_mode(captured, training, training_constants)
    except PathsDiffer as error:
        message = f"{type(model).__name__} cannot be captured by {way}: {error}."
        raise TraceError(message) from error
    tidy(captured)
    return _Attempt(captured, twins)


def _finish(model: nn.Module, attempt: _Attempt, leaves: Leaves) -> GraphModel:
    for node in graph_of(attempt.captured).nodes:  # read again, by types that are known now
        del node.meta["call"]
    tidy(attempt.captured)
    _warn_of_hooks(model, leaves)
    return attempt.captured


def _warn_of_hooks(model: nn.Module, leaves: Leaves) -> None:
    """Say which hooks became part of the graph: they no longer run as such."""
    found = [
        path
        for path, module in nn.Module.named_modules(model)
        if path
        and has_forward_hooks(module)
        and not has_computed_weight(module)
        and not leaves.is_leaf(module, path)
    ]
    if found:
        warnings.warn(
            f"Forward hooks of {', '.join(map(repr, found))}: the values that they change are part "
            "of the graph; hooks that only look on are not called any more. Hooks of single "
            "layers are.",
            stacklevel=5,
        )


# ---- messages -----------------------------------------------------------------------------------


def _failure(model: nn.Module, failed: TracingFailed, example: Example | None) -> str:
    """Message for a model that cannot be traced."""
    error, path = failed.__cause__, failed.path
    assert error is not None
    where = f"{type(model).__name__}.forward"
    leaf = "leaf_modules=[...] with the path of the part that branches"
    if path:
        where = f"module '{path}' ({type(model.get_submodule(path)).__name__})"
        leaf = f"leaf_modules=['{path}']"
    hint = "" if example else " Or pass an example input: torch.export can follow such code then."
    return (
        f"{type(model).__name__} cannot be captured as a graph: {where}{_line_of(error)} "
        f"({type(error).__name__}: {error}). "
        f"Make that code independent of the tensors' values, or pass {leaf}: "
        f"such a module stays in float and the report says so.{hint}"
    )


def _line_of(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_library(f.filename)]
    return f' at {frames[-1].filename}:{frames[-1].lineno}: "{frames[-1].line}"' if frames else ""


def _is_library(filename: str) -> bool:
    return any(Path(filename).is_relative_to(folder) for folder in (_ENGINE, _LIBRARY))


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}{_line_of(error)}"
