"""From a float model to one with quantizers: checked, captured, annotated, inserted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from edgeailite.quantization.graph.capture import capture
from edgeailite.quantization.graph.model import GraphModel, program_of
from edgeailite.quantization.graph.modes import in_mode
from edgeailite.quantization.graph.structure import Example
from edgeailite.quantization.modules.layer import QuantLayer
from edgeailite.quantization.prepare.annotate import annotate
from edgeailite.quantization.prepare.insert import insert

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
        model: Float model; its modules become part of the result.
        policy: The configurations.
        target: What the hardware computes.
        example_inputs: Run once through the float model, so that a wrong shape is found here.
        leaf_modules: Paths or types that are called as they are and stay in float.
        example_kwargs: Inputs by name.

    Raises:
        ValueError: The model's modules are part of a wrapper already, the example inputs do not
            pass through the model, or a weight is NaN or infinite.
        TraceError: The model cannot be captured.
    """
    leaf_modules = tuple(leaf_modules)
    if not isinstance(model, GraphModel):
        _refuse_quantized(model)
    check_finite_weights(model)
    example = None
    if example_inputs is not None:
        example = Example(tuple(example_inputs), dict(example_kwargs or {}))
        _check_example(model, example)
    graph = capture(model, leaf_modules, example)
    annotate(graph, _without(policy, leaf_modules), target)
    insert(graph)
    program = program_of(graph)
    program.stage, program.target = "prepared", target
    return graph


def _refuse_quantized(model: nn.Module) -> None:
    for path, module in model.named_modules():
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
    """Raise a ValueError that names the first parameter or buffer with a NaN or infinite value."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(
                f"'{name}' holds NaN or infinite values. "
                "Load a healthy checkpoint, or lower the learning rate."
            )


def _check_example(model: nn.Module, example: Example) -> None:
    try:
        with torch.no_grad(), in_mode(model, training=False):
            model(*example.args, **example.kwargs)
    except Exception as error:
        raise ValueError(
            f"The example input (dummy_input, example_inputs) of shape {example.describe()} does "
            f"not pass through {type(model).__name__} ({error}). "
            "Give an input of the shape that the model is used with, batch included."
        ) from error
