"""Annotation: decides which value gets which grid. :mod:`insert` carries it out.

Annotations are written to ``node.meta``: ``quant`` (:class:`OutputAnnotation`), ``layer``
(:class:`LayerAnnotation`) and ``module`` (:class:`ModuleAnnotation`). What is fused follows the
hardware: convolution, transposed convolution or linear + batch norm + ReLU, ReLU6 or Hardtanh is
one operation with one output quantizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from edgeailite.quantization.arithmetic.fixed_point import EXACT_BITS
from edgeailite.quantization.graph.calls import argument, operands, operation_of, traits_of
from edgeailite.quantization.graph.model import TRAINING_ONLY, graph_of, module_of
from edgeailite.quantization.graph.operations import (
    KEEP_IN_FLOAT,
    OUTPUT,
    QUANTIZE_HERE,
    QUANTIZER,
    RELU,
    SCALAR,
    TRANSPOSED_CONVOLUTION,
    UNKNOWN,
)
from edgeailite.quantization.graph.patterns import (
    call_sites,
    clamp_bounds,
    computed_parameter,
    foldable_batch_norm,
    is_absorbed,
    is_function,
    is_inner_function,
    is_parameter_of_layers,
    last_values,
    only_user,
    operation_path,
    pointwise_chain,
    softmax_dim,
)
from edgeailite.quantization.graph.results import NO_FLOATS, is_input
from edgeailite.quantization.graph.running import (
    parameter_value,
)
from edgeailite.quantization.graph.value_types import is_known_not_to_be_float
from edgeailite.quantization.graph.variants import is_constant
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.modules.layer import QUANT_LAYERS, QuantLayer
from edgeailite.quantization.prepare.constants import (
    readers_of,
    spec_of_constant,
    with_bits,
)
from edgeailite.quantization.prepare.masks import HOLDS_MASK, refuse_masks
from edgeailite.quantization.prepare.policy import LayerAnnotation, OutputAnnotation, Policy
from edgeailite.quantization.prepare.residuals import is_residual_stream

if TYPE_CHECKING:
    from edgeailite.quantization.arithmetic.spec import QConfig, QuantSpec
    from edgeailite.quantization.graph.model import GraphModel
    from edgeailite.quantization.graph.registry import Operation
    from edgeailite.quantization.prepare.target import Target

_NEVER = (OUTPUT, SCALAR, QUANTIZER, KEEP_IN_FLOAT, NO_FLOATS)
_MARKERS = (KEEP_IN_FLOAT, QUANTIZER, QUANTIZE_HERE)


def annotate(model: GraphModel, policy: Policy, target: Target) -> None:
    """Write the annotations of every node that one belongs to.

    Args:
        model: Captured model; only ``node.meta`` changes.
        policy: The configurations.
        target: What the hardware computes.
    """
    _refuse_calls(model, target)
    outputs = last_values(graph_of(model))
    sites = call_sites(graph_of(model))
    for node in graph_of(model).nodes:
        for key in ("quant", "layer", "module"):
            node.meta.pop(key, None)
        if node.meta.get(TRAINING_ONLY, False):
            continue
        if traits_of(node).has_weight and target.computes(operation_of(node)):
            _annotate_layer(model, node, policy)
        if node in outputs and not policy.quantize_out:
            continue
        if not _is_quantized_here(model, node, policy, target):
            continue
        qconfig = _qconfig_of(model, node, policy)
        if qconfig is None or qconfig.activation is None:
            continue
        spec = _spec_of(node, qconfig, qconfig.activation, policy, node in outputs)
        annotation = _output_annotation(model, node, spec, sites)
        node.meta["quant"] = target.annotate(node, annotation)


def _spec_of(
    node: fx.Node, qconfig: QConfig, spec: QuantSpec, policy: Policy, is_output: bool
) -> QuantSpec:
    """Spec of a value: ends and residual streams may have bits of their own."""
    if qconfig.end_bits is not None and (is_input(node) or is_output):
        spec = replace(spec, bit_width=qconfig.end_bits)
    elif policy.residual_bits is not None and is_residual_stream(node):
        spec = with_bits(spec, policy.residual_bits)
    if is_output and spec.range_rule == "percentile":
        return replace(spec, range_rule="min_max")  # the largest score decides: none is cut off
    return spec


def _refuse_calls(model: GraphModel, target: Target) -> None:
    """Make calls unknown that the target does not compute with these arguments."""
    for node in graph_of(model).nodes:
        if target.computes(operation_of(node)):
            reason = target.refuses(node, module_of(model, node))
            if reason:
                node.meta["call"] = replace(node.meta["call"], operation=UNKNOWN, reason=reason)
    refuse_masks(model)


def _qconfig_of(model: GraphModel, node: fx.Node, policy: Policy) -> QConfig | None:
    module = module_of(model, node)
    if module is None:
        return policy.of(node.meta.get("owner", ""), node.target)
    return policy.of(str(node.target), type(module))


# ---- layers -------------------------------------------------------------------------------------


def _annotate_layer(model: GraphModel, node: fx.Node, policy: Policy) -> None:
    module = module_of(model, node)
    if isinstance(module, QuantLayer) or (module is not None and type(module) not in QUANT_LAYERS):
        return
    weight = _weight_of(model, node)
    qconfig = _qconfig_of(model, node, policy)
    if weight is None or qconfig is None or qconfig.weight is None:
        return
    node.meta["layer"] = LayerAnnotation(
        _layer_qconfig(node, weight.shape, qconfig), foldable_batch_norm(model, node)
    )


def _weight_of(model: GraphModel, node: fx.Node) -> Tensor | None:
    """Return a layer's weight; None for a function with one that depends on the input."""
    if node.op == "call_module":
        weight = model.get_submodule(str(node.target)).weight
        assert isinstance(weight, Tensor)
        return weight
    weight = argument(node, "weight")
    if computed_parameter(node) is not None or not isinstance(weight, fx.Node):
        return None
    value = parameter_value(model, weight)
    assert isinstance(value, Tensor)
    return value


def _layer_qconfig(node: fx.Node, shape: torch.Size, qconfig: QConfig) -> QConfig:
    """Per-channel weights only where asked for and where a grid per channel can be written down."""
    assert qconfig.weight is not None
    transposed = operation_of(node) is TRANSPOSED_CONVOLUTION
    is_linear = "groups" not in operation_of(node).parameters
    groups = 1 if is_linear else int(argument(node, "groups"))
    depthwise = groups > 1 and (shape[0] // groups if transposed else shape[1]) == 1
    # ONNX has one axis for the scales; here output channels lie along two.
    unsupported = transposed and groups > 1 and not (depthwise and shape[1] == 1)
    if unsupported or (qconfig.per_channel_depthwise_only and not depthwise):
        qconfig = replace(qconfig, weight=replace(qconfig.weight, granularity="per_tensor"))
    return _with_exact_sums(qconfig, shape, shape[1] * groups if transposed else shape[0])


def _with_exact_sums(qconfig: QConfig, shape: torch.Size, out_channels: int) -> QConfig:
    """Weight scales of so few bits that no sum needs more than float32 has.

    Such a sum counts in units of the scale's last bit: ``sum |x_q * w_q| * m + |b_q| * m < 2^24``.
    """
    weight = qconfig.weight
    assert weight is not None
    if weight.scale_bits is None:
        return qconfig
    fan_in = shape.numel() // out_channels
    largest = weight.quant_max * 256 * fan_in + (1 << (qconfig.bias.bit_width - 1))
    bits = max(min(weight.scale_bits, EXACT_BITS - largest.bit_length()), 1)
    return replace(qconfig, weight=replace(weight, scale_bits=bits))


# ---- values -------------------------------------------------------------------------------------


def _is_quantized_here(model: GraphModel, node: fx.Node, policy: Policy, target: Target) -> bool:
    """Return True if this node's value, not that of what is fused behind it, gets a quantizer."""
    operation, traits = operation_of(node), traits_of(node)
    if is_constant(node):
        return any(_reads_grid_of_constant(user, target) for user in readers_of(node))
    if operation in _NEVER or not node.users or is_known_not_to_be_float(node):
        return False
    if node.meta[HOLDS_MASK]:
        return False
    if is_parameter_of_layers(node) or (is_inner_function(node) and target.computes(operation)):
        return False
    if any(operation_of(u) in _MARKERS for u in node.users):
        return False
    if operation is QUANTIZE_HERE:
        return True
    if _is_fused(model, node):
        return False
    if is_input(node):
        return policy.quantize_in and _feeds(node, target.quantizes_input_of)
    if _is_computed(node, target):
        return True
    return not traits.moves_values and _feeds(node, lambda o: _needs_grids(o, target))


def _is_fused(model: GraphModel, node: fx.Node) -> bool:
    """Return True if what alone reads a value, an activation or batch norm, is one with it."""
    traits, user = traits_of(node), only_user(node)
    if user is None or is_input(node) or traits.moves_values or traits.is_activation:
        return False
    return is_absorbed(user) or (traits.has_weight and foldable_batch_norm(model, node) is not None)


def _is_computed(node: fx.Node, target: Target) -> bool:
    """Return True if the target computes a value; a function of floats stays in float."""
    operation = operation_of(node)
    if is_function(operation):
        (operand,) = operands(pointwise_chain(node)[0])
        return target.computes(operation) and _lies_on_grid(operand)
    return target.computes(operation) and (not operation.traits.is_activation or is_absorbed(node))


def _lies_on_grid(node: fx.Node) -> bool:
    while traits_of(node).moves_values and "quant" not in node.meta:
        node = operands(node)[0]
    return "quant" in node.meta or operation_of(node) is QUANTIZER


def _needs_grids(operation: Operation, target: Target) -> bool:
    """Return True for an operation that asks for a grid of a value which the target does not make.

    A function does not: a mask in front of a softmax would leave the values next to no integers.
    Nor does an activation, which is one with the quantizer behind it.
    """
    makes_grid = is_function(operation) or operation.traits.is_activation
    return target.computes(operation) and not makes_grid


def _reads_grid_of_constant(user: fx.Node, target: Target) -> bool:
    """Return True for a reader of a constant; a function reads one that an operation moved."""
    operation = operation_of(user)
    is_table = operation.traits.is_pointwise and target.computes(operation)
    return is_table or _needs_grids(operation, target)


def _feeds(node: fx.Node, wanted: Callable[[Operation], bool]) -> bool:
    """Return True if the value, moved or not, is read by an operation that is `wanted`."""
    return any(
        wanted(operation_of(user)) or (traits_of(user).moves_values and _feeds(user, wanted))
        for user in node.users
    )


def _output_annotation(
    model: GraphModel, node: fx.Node, spec: QuantSpec, sites: dict[str, list[fx.Node]]
) -> OutputAnnotation:
    if is_constant(node):
        return OutputAnnotation(spec_of_constant(node, spec), _added_path(model, node))
    is_relu, bounds = operation_of(node) is RELU, clamp_bounds(node)
    absorbs = is_relu or bounds is not None
    if is_relu and spec.signed:
        bounds = (0.0, math.inf)
    # Signed integers that are asked for stay signed, whatever the values.
    if not spec.signed and _starts_at_zero(model, node, bounds):
        spec = replace(spec, signed=False)
    if absorbs and node.op == "call_module":
        calls = sites[str(node.target)]
        own = node is calls[0] and all(_all_absorbed(call) for call in calls)
        return OutputAnnotation(spec, str(node.target), bounds, True, replaces_module=own)
    return OutputAnnotation(
        spec, _added_path(model, node), bounds, absorbs, softmax_dim=softmax_dim(node)
    )


def _all_absorbed(call: fx.Node) -> bool:
    return not any(operation_of(user) in _MARKERS for user in call.users)


def _starts_at_zero(model: GraphModel, node: fx.Node, bounds: tuple[float, float] | None) -> bool:
    """Return True if an operation gives no negative value, as the graph alone says."""
    if operation_of(node) is RELU or bounds is not None:
        return bounds is None or bounds[0] >= 0
    return traits_of(node).keeps_sign and _are_unsigned(model, operands(node))


def _is_unsigned(model: GraphModel, node: fx.Node) -> bool:
    """Return True if the graph alone says that the grid of a node's value starts at zero."""
    if "quant" in node.meta:
        return node.meta["quant"].spec.signed is False
    if operation_of(node) is QUANTIZER:
        quantizer = module_of(model, node)
        return isinstance(quantizer, FakeQuantize) and quantizer.spec.signed is False
    if traits_of(node).moves_values or traits_of(node).concatenates:
        return bool(operands(node)) and _are_unsigned(model, operands(node))
    return False


def _are_unsigned(model: GraphModel, nodes: list[fx.Node]) -> bool:
    return all(_is_unsigned(model, node) for node in nodes)


# ---- paths --------------------------------------------------------------------------------------


def _added_path(model: GraphModel, node: fx.Node) -> str:
    """Path of a quantizer that replaces nothing.

    ``<first>.activation_in`` for an input, ``<module>.activation_q`` behind a module, else
    ``<owner>.<operation>_q``.
    """
    if is_input(node):
        first = next(iter(node.users))
        can_hold = first.op == "call_module" and not traits_of(first).is_activation
        return _held_by(model, first, "activation_in") if can_hold else "activation_in"
    if node.op == "call_module":
        return _held_by(model, node, "activation_q")
    if node.op == "get_attr":
        return f"{node.target}_q"
    owner = node.meta.get("owner", "")
    module = model.get_submodule(owner)
    is_operation = (
        owner != ""
        and not any(True for _ in module.children())
        and not any(True for _ in module.parameters())
    )
    return f"{owner}.activation_q" if is_operation else f"{operation_path(node)}_q"


def _held_by(model: GraphModel, node: fx.Node, name: str) -> str:
    """``<module>.<name>``; beside a module that runs its children, which a new one would join."""
    runs_children = next(model.get_submodule(str(node.target)).children(), None) is not None
    return f"{node.target}{'_' if runs_children else '.'}{name}"
