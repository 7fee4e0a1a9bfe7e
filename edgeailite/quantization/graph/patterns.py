"""Patterns in a graph: readers, call sites, what belongs together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from edgeailite.quantization.graph.calls import argument, operands, operation_of, traits_of
from edgeailite.quantization.graph.constants import is_computed_from_parameters
from edgeailite.quantization.graph.model import evaluation_result, graph_of
from edgeailite.quantization.graph.normalizations import NORMALIZATIONS, SOFTMAXES
from edgeailite.quantization.graph.operations import (
    ADD,
    BATCH_NORM,
    LINEAR,
    QUANTIZE_HERE,
    QUANTIZER,
    RELU,
)
from edgeailite.quantization.graph.value_types import TensorType
from edgeailite.quantization.graph.variants import is_constant

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel
    from edgeailite.quantization.graph.registry import Operation


def only_user(node: fx.Node) -> fx.Node | None:
    """Return the reader of a value that has one; None for a value with none or several."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def call_sites(graph: fx.Graph) -> dict[str, list[fx.Node]]:
    """Nodes that call each module, by its path."""
    sites: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            sites.setdefault(str(node.target), []).append(node)
    return sites


def last_values(graph: fx.Graph) -> set[fx.Node]:
    """Values that the outputs are, or are moved from."""
    found, pending = set(), _nodes_in(evaluation_result(graph))
    while pending:
        node = pending.pop()
        found.add(node)
        if traits_of(node).moves_values:
            pending.extend(node.all_input_nodes)
    return found


def _nodes_in(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(value, found.append)
    return found


def foldable_batch_norm(model: GraphModel, layer: fx.Node) -> fx.Node | None:
    """Batch norm with running statistics that alone reads `layer` and that only `layer` feeds.

    It normalizes the axis behind the batch, which is a linear layer's last one if there are two.
    """
    user = only_user(layer)
    if user is None or operation_of(user) is not BATCH_NORM:
        return None
    if operation_of(layer) is LINEAR and not _may_have_two_axes(model, layer, user):
        return None
    alone = len(call_sites(graph_of(model))[str(user.target)]) == 1
    return user if alone and is_foldable(model.get_submodule(str(user.target))) else None


def _may_have_two_axes(model: GraphModel, linear: fx.Node, batch_norm: fx.Node) -> bool:
    """Return False where the shape, or else the number of features, tells more axes."""
    known = linear.meta.get("type")
    if isinstance(known, TensorType):
        return len(known.shape) == 2
    features = getattr(model.get_submodule(str(batch_norm.target)), "num_features", None)
    return (
        linear.op != "call_module"
        or features == model.get_submodule(str(linear.target)).out_features
    )


def is_foldable(batch_norm: nn.Module) -> bool:
    """Return True if `batch_norm` has running statistics: its evaluation mode is then linear."""
    return getattr(batch_norm, "running_mean", None) is not None


def clamp_bounds(node: fx.Node) -> tuple[float, float] | None:
    """``(low, high)`` of an operation with bounds; None for others, or where one is no number.

    A bound that is not given is infinite.
    """
    given = operation_of(node).bounds
    if given is None:
        return None
    low, high = (argument(node, bound) if isinstance(bound, str) else bound for bound in given)
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    if isinstance(low, int | float) and isinstance(high, int | float) and low < high:
        return float(low), float(high)
    return None


def is_absorbed(node: fx.Node) -> bool:
    """Return True for an activation function that the quantizer behind it computes."""
    return operation_of(node) is RELU or clamp_bounds(node) is not None


def is_function(operation: Operation) -> bool:
    """Return True for a function of one tensor: pointwise, or a normalization along axes."""
    return operation.traits.is_pointwise or operation in NORMALIZATIONS


def pointwise_chain(node: fx.Node) -> list[fx.Node]:
    """Functions of functions that end with a node, in their order; what nothing else reads."""
    found = [node]
    while traits_of(found[0]).is_pointwise:
        (operand,) = operands(found[0])
        if not traits_of(operand).is_pointwise or len(operand.users) > 1:
            return found
        found.insert(0, operand)
    return found


def is_inner_function(node: fx.Node) -> bool:
    """Return True for a function whose result one function alone reads: both are one."""
    return (
        traits_of(node).is_pointwise
        and len(node.users) == 1
        and traits_of(next(iter(node.users))).is_pointwise
    )


def is_parameter_of_layers(node: fx.Node) -> bool:
    """Return True if a value is computed from parameters for layers' weights and biases alone."""
    return is_computed_from_parameters(node) and all(
        is_parameter_of_layers(user)
        or (traits_of(user).has_weight and argument(user, "input") is not node)
        for user in node.users
    )


def moved_from(node: fx.Node) -> fx.Node:
    """Value that operations moved to where it is."""
    while traits_of(node).moves_values:
        node = operands(node)[0]
    return node


def is_operand(constant: fx.Node, user: fx.Node) -> bool:
    """Return True if an operation computes on a constant, which is not its weight."""
    if is_constant(user) or constant not in operands(user):
        return False
    return not traits_of(user).has_weight or argument(user, "input") is constant


def computed_parameter(layer: fx.Node) -> str | None:
    """Name the parameter of a functional layer that depends on the input, or None."""
    for name in ("weight", "bias"):
        value = argument(layer, name)
        known = isinstance(value, fx.Node) and is_computed_from_parameters(value)
        if value is not None and not known:
            return name
    return None


def axis_of_softmax(node: fx.Node) -> int | None:
    """Axis of the softmaxes that alone read a value, moved or not; None if anything else does."""
    axes = set(_axes_of_softmaxes(node))
    return axes.pop() if len(axes) == 1 else None


def softmax_dim(node: fx.Node) -> int | None:
    """Axis of the softmax that alone reads a sum with a constant; None for any other value."""
    is_masked = operation_of(node) is ADD and constants_in(node)
    return axis_of_softmax(node) if is_masked else None


def constants_in(node: fx.Node) -> list[fx.Node]:
    """Constants that an operation computes on, moved or not."""
    return [n for n in map(moved_from, operands(node)) if is_constant(n)]


def _axes_of_softmaxes(node: fx.Node, is_moved: bool = False) -> Iterator[int | None]:
    """Axes of the softmaxes that read a value; None for every other reader."""
    for user in node.users:
        if operation_of(user) in SOFTMAXES:
            axis = argument(user, "dim")
            yield axis if not is_moved or axis == -1 else None
        elif _keeps_last_axis(node, user):
            yield from _axes_of_softmaxes(user, is_moved=True)
        else:
            yield None


def _keeps_last_axis(node: fx.Node, user: fx.Node) -> bool:
    """Return True for a reshaping that is known to leave the vectors along the last axis whole."""
    traits = traits_of(user)
    if not (traits.moves_values and traits.keeps_order):
        return False
    known = [n.meta.get("type") for n in (node, user)]
    sizes = [t.shape[-1] if isinstance(t, TensorType) and t.shape else None for t in known]
    return None not in sizes and sizes[0] == sizes[1]


def quantizer_of(node: Any) -> fx.Node | None:
    """Quantizer node whose grid a node's value lies on; None for a float value."""
    while isinstance(node, fx.Node):
        operation = operation_of(node)
        if operation is QUANTIZER:
            return node
        if not operation.traits.moves_values and operation is not QUANTIZE_HERE:
            return None
        node = node.all_input_nodes[0] if node.all_input_nodes else None
    return None


def quantizer_behind(node: fx.Node) -> fx.Node | None:
    """Quantizer node that alone reads a value; None if there is none, or others do."""
    user = only_user(node)
    return user if user is not None and operation_of(user) is QUANTIZER else None


def operation_path(node: fx.Node) -> str:
    """``<owner>.<operation>`` of a function or method, after the module whose forward calls it."""
    owner, name = node.meta.get("owner", ""), node.name.rstrip("_0123456789")
    return f"{owner}.{name}" if owner else name


def call_name(node: fx.Node) -> str:
    """Path of the module that a node calls, else the node's own name."""
    return str(node.target) if node.op == "call_module" else node.name
