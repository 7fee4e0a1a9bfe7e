"""From a float model to one with quantizers: checked, captured, annotated, inserted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from edgeailite.quantization.graph.behavior import named_tensors
from edgeailite.quantization.graph.capture import capture
from edgeailite.quantization.graph.model import GraphModel, program_of, remember_modules
from edgeailite.quantization.graph.normalizations import NORM_ALONG
from edgeailite.quantization.graph.opened_calls import open_calls
from edgeailite.quantization.graph.operations import DIV
from edgeailite.quantization.graph.structure import Example
from edgeailite.quantization.graph.written_norms import recognize_norms
from edgeailite.quantization.modules.layer import QuantLayer
from edgeailite.quantization.prepare.annotate import annotate
from edgeailite.quantization.prepare.insert import insert
from edgeailite.quantization.prepare.original import original_model
from edgeailite.quantization.prepare.quotients import insert_quotients

if TYPE_CHECKING:
    from edgeailite.quantization.prepare.policy import Policy
    from edgeailite.quantization.prepare.target import Target


def prepare(
    model: nn.Module,
    policy: Policy,
    target: Target,
    example_inputs: Sequence[Any] | None = None,
    leaf_modules: Iterable[str | type[nn.Module]] = (),
    example_kwargs: Mapping[str, Any] | None = None,
) -> GraphModel:
    """Capture, annotate, insert.

    Args:
        model: Float model; its modules become part of the result. One that is compiled or wrapped
            for data parallelism is unwrapped, with a warning.
        policy: The configurations.
        target: What the hardware computes.
        example_inputs: Run once through the float model, so that a wrong shape is found here.
        leaf_modules: Paths or types that are called as they are and stay in float.
        example_kwargs: Inputs by name.

    Raises:
        ValueError: The model is scripted, on the meta device or not in float32, its modules are
            part of a wrapper already, the example inputs do not pass through it, or a weight is NaN
            or infinite.
        TraceError: The model cannot be captured.
    """
    leaf_modules = tuple(leaf_modules)
    model = original_model(model)
    if not isinstance(model, GraphModel):
        _refuse_quantized(model)
    check_finite_weights(model)
    example = None
    if example_inputs is not None:
        example = Example(tuple(example_inputs), dict(example_kwargs or {}))
    graph = capture(model, leaf_modules, example)
    if policy.quantizes_values:
        open_calls(graph, target.computes)
    if policy.quantizes_values and target.computes(NORM_ALONG):
        recognize_norms(graph)
    annotate(graph, _without(policy, leaf_modules), target)
    insert(graph)
    if target.computes(DIV):
        insert_quotients(graph)
    remember_modules(graph)
    program = program_of(graph)
    program.stage, program.target = "prepared", target
    return graph


def _refuse_quantized(model: nn.Module) -> None:
    for path, module in nn.Module.named_modules(model):
        if isinstance(module, QuantLayer):
            raise ValueError(
                f"'{path}' is quantized already: {type(model).__name__} is part of a wrapper. "
                "Give that wrapper's .module, or a copy of the model from before it was wrapped."
            )


def _without(policy: Policy, leaves: Iterable[str | type[nn.Module]]) -> Policy:
    """The policy that leaves the named modules in float, torch's own layers among them too."""
    paths = {leaf: None for leaf in leaves if isinstance(leaf, str)}
    types = {leaf: None for leaf in leaves if not isinstance(leaf, str)}
    by_path, by_type = {**policy.by_path, **paths}, {**policy.by_type, **types}
    return replace(policy, by_path=by_path, by_type=by_type)


def check_finite_weights(model: nn.Module) -> None:
    """Raise a ValueError that names the first parameter or buffer with a NaN or infinite value.

    A buffer may hold ``-inf``, as masks in front of a softmax do.
    """
    parameters = named_tensors(model, "_parameters")
    buffers = ((n, t[~t.isneginf()]) for n, t in named_tensors(model, "_buffers"))
    for name, tensor in (*parameters, *buffers):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(
                f"'{name}' holds NaN or infinite values. "
                "Load a healthy checkpoint, or lower the learning rate."
            )
