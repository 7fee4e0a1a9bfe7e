"""Policy: which value gets which spec. Nothing is inserted here; :mod:`insert` reads the result.

Annotations are written to ``node.meta['quant']``. What is fused follows the hardware: convolution,
transposed convolution or linear + batch norm + ReLU, ReLU6 or Hardtanh is one unit with one output
quantizer.
"""

from __future__ import annotations

import math
import operator
import re
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgeailite.quantization.arithmetic.fixed_point import MULTIPLIER_BITS
from edgeailite.quantization.arithmetic.spec import FixedPoint, QConfig, QuantSpec
from edgeailite.quantization.graph.model import GraphModel
from edgeailite.quantization.graph.operations import Kind, argument, clamp_bounds, operands
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.modules.layer import QUANT_LAYERS, QuantLayer
from edgeailite.quantization.modules.normalization import is_foldable

MOVES_VALUES = (Kind.PRESERVE, Kind.PAD)
ACTIVATIONS = (Kind.RELU, Kind.CLAMP)
COMPUTES_ON_GRID = (
    Kind.LAYER, Kind.BATCH_NORM, Kind.RELU, Kind.CLAMP, Kind.ADD, Kind.SUB, Kind.MUL,
    Kind.MATMUL, Kind.CAT, Kind.AVERAGE, Kind.RESIZE,
)  # fmt: skip
COMPUTES_IN_FIXED_POINT = (
    Kind.LAYER, Kind.BATCH_NORM, Kind.RELU, Kind.CLAMP, Kind.ADD, Kind.CAT, Kind.AVERAGE,
)  # fmt: skip
_SHARES_SCALE = (Kind.ADD, Kind.CAT)
_KEEPS_SIGN = (Kind.ADD, Kind.MUL, Kind.CAT, Kind.AVERAGE, Kind.RESIZE, *MOVES_VALUES)


@dataclass(frozen=True)
class OutputAnnotation:
    """The value of a node is quantized.

    Attributes:
        spec: Its grid.
        path: Where the quantizer lives in the module tree (made unique on insertion).
        bounds: Bounds of an absorbed activation function.
        replaces_node: The node is a ReLU or clamp that the quantizer absorbs.
        replaces_module: The quantizer takes the module's own path.
        shares_scale: It has the scale of the operands, an add's or a concat's.
    """

    spec: QuantSpec
    path: str
    bounds: tuple[float, float] | None = None
    replaces_node: bool = False
    replaces_module: bool = False
    shares_scale: bool = False


@dataclass(frozen=True)
class LayerAnnotation:
    """A layer that quantizes its weight and bias, with the batch norm node it folds."""

    qconfig: QConfig
    batch_norm: fx.Node | None = None


@dataclass(frozen=True)
class Policy:
    """What the rules may be told. None instead of a configuration leaves in float.

    Attributes:
        qconfig: For every layer and value.
        quantize_in: Quantize the network's inputs.
        quantize_out: Quantize the last quantizable values.
        by_path: Other configurations for modules (and all below them).
        by_pattern: For modules whose path a regular expression matches from its start.
        by_type: For module types, functions and the names of tensor methods.
        fixed_point: The target's rules, or None for one that requantizes in float32.
    """

    qconfig: QConfig | None
    quantize_in: bool = True
    quantize_out: bool = True
    by_path: dict[str, QConfig | None] = field(default_factory=dict)
    by_pattern: dict[str, QConfig | None] = field(default_factory=dict)
    by_type: dict[Any, QConfig | None] = field(default_factory=dict)
    fixed_point: FixedPoint | None = None

    @property
    def grid_kinds(self) -> tuple[Kind, ...]:
        """Operations whose operands and results are integers."""
        return COMPUTES_ON_GRID if self.fixed_point is None else COMPUTES_IN_FIXED_POINT

    @property
    def input_kinds(self) -> tuple[Kind, ...]:
        """Operations for which the network's input is quantized; a batch norm may normalise it."""
        if self.fixed_point is None:
            return self.grid_kinds
        return tuple(kind for kind in self.grid_kinds if kind is not Kind.BATCH_NORM)

    def of(self, path: str, operation: Any = None) -> QConfig | None:
        """The configuration of one operation: by path, then by pattern, then by type.

        Args:
            path: Of the module that is called, or that calls the function; of several entries
                the longest that is it or a parent of it counts.
            operation: The module's type, the function, or the method's name.
        """
        matches = [p for p in self.by_path if path == p or path.startswith(p + ".")]
        if matches:
            return self.by_path[max(matches, key=len)]
        for pattern, qconfig in self.by_pattern.items():
            if re.match(pattern, path):
                return qconfig
        return self.by_type.get(operation, self.qconfig)


def annotate(model: GraphModel, policy: Policy) -> None:
    """Write a :class:`LayerAnnotation` and an :class:`OutputAnnotation` wherever one belongs.

    Batch norms and averages that compute in fixed point get ``node.meta['fixed_point']``.

    Args:
        model: Captured model; only ``node.meta`` changes.
        policy: The rules' settings.
    """
    model.classify()
    outputs = _last_values(model.graph)
    last = set() if policy.quantize_out else outputs
    call_sites = _call_sites(model.graph)
    for node in model.graph.nodes:
        node.meta.pop("quant", None)
        node.meta.pop("layer", None)
        node.meta.pop("fixed_point", None)
        kind = node.meta["kind"]
        if kind is Kind.LAYER:
            _annotate_layer(model, node, policy)
        if node in last or not _is_quantized_here(model, node, policy):
            continue
        qconfig = _qconfig_of(model, node, policy)
        if qconfig is None or qconfig.activation is None:
            continue
        spec = qconfig.activation
        if qconfig.end_bits is not None and (kind is Kind.INPUT or node in outputs):
            spec = replace(spec, bit_width=qconfig.end_bits)
        annotation = _output_annotation(model, node, spec, call_sites)
        if policy.fixed_point is not None:
            annotation = _in_fixed_point(model, node, annotation, policy.fixed_point)
        node.meta["quant"] = annotation


def _qconfig_of(model: GraphModel, node: fx.Node, policy: Policy) -> QConfig | None:
    module = model.module_of(node)
    if module is None:
        return policy.of(node.meta.get("owner", ""), node.target)
    return policy.of(str(node.target), type(module))


def _call_sites(graph: fx.Graph) -> dict[str, list[fx.Node]]:
    """Nodes that call each module, by its path."""
    sites: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            sites.setdefault(str(node.target), []).append(node)
    return sites


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def foldable_batch_norm(model: GraphModel, layer: fx.Node) -> fx.Node | None:
    """The batch norm that is the only reader of `layer` and that only `layer` feeds."""
    user = _only_user(layer)
    if user is None or user.meta["kind"] is not Kind.BATCH_NORM:
        return None
    calls = [n for n in model.graph.nodes if n.op == "call_module" and n.target == user.target]
    return user if len(calls) == 1 and is_foldable(model.get_submodule(str(user.target))) else None


def _annotate_layer(model: GraphModel, node: fx.Node, policy: Policy) -> None:
    module = model.module_of(node)
    if isinstance(module, QuantLayer) or (module is not None and type(module) not in QUANT_LAYERS):
        return
    weight = _weight_of(model, node)
    qconfig = _qconfig_of(model, node, policy)
    if weight is None or qconfig is None or qconfig.weight is None:
        return
    node.meta["layer"] = LayerAnnotation(
        _layer_qconfig(node, module, weight.shape, qconfig), foldable_batch_norm(model, node)
    )


def _weight_of(model: GraphModel, node: fx.Node) -> Tensor | None:
    """A layer's weight; None for a functional layer whose weight is computed in the graph."""
    if node.op == "call_module":
        weight = model.get_submodule(str(node.target)).weight
        assert isinstance(weight, Tensor)
        return weight
    weight = argument(node, 1, "weight")
    if isinstance(weight, fx.Node) and weight.op == "get_attr":
        return operator.attrgetter(str(weight.target))(model)
    return None


def _layer_qconfig(
    node: fx.Node, module: nn.Module | None, shape: torch.Size, qconfig: QConfig
) -> QConfig:
    """Per-channel weights only where asked for and where a grid per channel can be written down."""
    assert qconfig.weight is not None
    if module is None:
        assert callable(node.target)
        groups = int(argument(node, 6, "groups", 1))
        transposed = "transpose" in node.target.__name__
    else:
        groups = getattr(module, "groups", 1)
        transposed = getattr(module, "transposed", False)
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
    bits = max(min(weight.scale_bits, 24 - largest.bit_length()), 1)
    return replace(qconfig, weight=replace(weight, scale_bits=bits))


def _is_quantized_here(model: GraphModel, node: fx.Node, policy: Policy) -> bool:
    """Whether this node's own value, and not that of what is fused behind it, gets a quantizer."""
    kind, user = node.meta["kind"], _only_user(node)
    if kind in (Kind.OUTPUT, Kind.SCALAR, Kind.QUANTIZER, Kind.FORBID) or not node.users:
        return False
    if any(u.meta["kind"] in (Kind.FORBID, Kind.QUANTIZER, Kind.FORCE) for u in node.users):
        return False
    if kind is Kind.FORCE:
        return True
    if user is not None and kind not in (Kind.INPUT, *MOVES_VALUES, *ACTIVATIONS):
        if user.meta["kind"] is Kind.RELU or _is_clamp(model, user):
            return False
        if kind is Kind.LAYER and foldable_batch_norm(model, node) is not None:
            return False
    if kind is Kind.INPUT:
        return policy.quantize_in and _feeds_grid(node, policy.input_kinds)
    if kind in policy.grid_kinds and (kind is not Kind.CLAMP or _is_clamp(model, node)):
        return True
    return kind not in MOVES_VALUES and _feeds_grid(node, policy.grid_kinds)


def _is_clamp(model: GraphModel, node: fx.Node) -> bool:
    return node.meta["kind"] is Kind.CLAMP and clamp_bounds(node, model.module_of(node)) is not None


def _feeds_grid(node: fx.Node, kinds: tuple[Kind, ...]) -> bool:
    """Whether the value, moved or not, is read by an operation of `kinds`."""
    return any(
        u.meta["kind"] in kinds or (u.meta["kind"] in MOVES_VALUES and _feeds_grid(u, kinds))
        for u in node.users
    )


def _last_values(graph: fx.Graph) -> set[fx.Node]:
    """The values that the outputs are, or are moved from."""
    found, pending = set(), list(next(n for n in graph.nodes if n.op == "output").all_input_nodes)
    while pending:
        node = pending.pop()
        found.add(node)
        if node.meta["kind"] in MOVES_VALUES:
            pending.extend(node.all_input_nodes)
    return found


def _output_annotation(
    model: GraphModel, node: fx.Node, spec: QuantSpec, call_sites: dict[str, list[fx.Node]]
) -> OutputAnnotation:
    kind, module = node.meta["kind"], model.module_of(node)
    bounds = clamp_bounds(node, module) if kind is Kind.CLAMP else None
    if kind is Kind.RELU and spec.signed:  # signed integers are asked for, whatever the values
        bounds = (0.0, math.inf)
    elif kind is Kind.RELU:
        spec = replace(spec, signed=False)
    elif bounds is not None:
        spec = _clamp_spec(spec, bounds)
    elif not spec.signed and kind in _KEEPS_SIGN and _are_unsigned(model, operands(node)):
        spec = replace(spec, signed=False)
    absorbs = kind is Kind.RELU or bounds is not None
    if absorbs and node.op == "call_module":
        sites = call_sites[str(node.target)]
        own = node is sites[0] and all(_all_absorbed(model, s) for s in sites)
        return OutputAnnotation(spec, str(node.target), bounds, True, replaces_module=own)
    return OutputAnnotation(spec, _added_path(model, node), bounds, absorbs)


def _in_fixed_point(
    model: GraphModel, node: fx.Node, annotation: OutputAnnotation, rules: FixedPoint
) -> OutputAnnotation:
    """The annotation of a target with offset, multiplier and shift."""
    spec, producer = annotation.spec, _producer(node)
    kind = producer.meta["kind"]
    if spec.symmetric and spec.signed is None:
        spec = replace(spec, signed=True)
    if kind in (Kind.BATCH_NORM, Kind.AVERAGE):
        on_grid = _is_on_grid(model, producer.all_input_nodes[0])
        if on_grid or kind is Kind.BATCH_NORM:
            bits = MULTIPLIER_BITS if on_grid else rules.input_multiplier_bits
            producer.meta["fixed_point"] = bits
    if "fixed_point" in producer.meta or _has_own_half_step(producer):
        spec = replace(spec, rounding="floor")
    return replace(annotation, spec=spec, shares_scale=kind in _SHARES_SCALE)


def _producer(node: fx.Node) -> fx.Node:
    """The operation whose result is quantized at `node`, from in front of what is absorbed."""
    while node.meta["kind"] in ACTIVATIONS and "quant" not in node.all_input_nodes[0].meta:
        node = node.all_input_nodes[0]
    if node.meta["kind"] is Kind.BATCH_NORM and "layer" in node.all_input_nodes[0].meta:
        layer = node.all_input_nodes[0]
        return layer if layer.meta["layer"].batch_norm is node else node
    return node


def _is_on_grid(model: GraphModel, node: fx.Node) -> bool:
    """Whether a value is quantized where it is made, or where what it moves is made."""
    while "quant" not in node.meta and node.meta["kind"] is not Kind.QUANTIZER:
        if node.meta["kind"] not in MOVES_VALUES or not node.all_input_nodes:
            return False
        node = node.all_input_nodes[0]
    return True


def _has_own_half_step(producer: fx.Node) -> bool:
    """Whether a layer's offset holds a half step that is not exactly half of the output's."""
    annotation = producer.meta.get("layer")
    if annotation is None:
        return False
    qconfig = annotation.qconfig
    return qconfig.weight.scale_bits is not None or qconfig.bias.is_float


def _all_absorbed(model: GraphModel, site: fx.Node) -> bool:
    return not any(u.meta["kind"] in (Kind.FORBID, Kind.QUANTIZER, Kind.FORCE) for u in site.users)


def _clamp_spec(spec: QuantSpec, bounds: tuple[float, float]) -> QuantSpec:
    """ReLU6 keeps its statistics (few networks reach 6 everywhere); other bounds are the range."""
    fixed = None if bounds == (0.0, 6.0) else bounds
    if spec.signed:
        return replace(spec, fixed_range=fixed)
    signed = bounds[0] < 0
    return replace(spec, signed=signed if spec.symmetric or not signed else None, fixed_range=fixed)


def is_unsigned(model: GraphModel, node: fx.Node) -> bool:
    """Whether the grid of a node's value starts at zero, as far as the graph alone says."""
    if "quant" in node.meta:
        return node.meta["quant"].spec.signed is False
    if node.meta["kind"] is Kind.QUANTIZER:
        quantizer = model.module_of(node)
        return isinstance(quantizer, FakeQuantize) and quantizer.spec.signed is False
    if node.meta["kind"] in MOVES_VALUES or node.meta["kind"] is Kind.CAT:
        return bool(operands(node)) and _are_unsigned(model, operands(node))
    return False


def _are_unsigned(model: GraphModel, nodes: list[fx.Node]) -> bool:
    return all(is_unsigned(model, node) for node in nodes)


def _added_path(model: GraphModel, node: fx.Node) -> str:
    """Where a quantizer that replaces nothing lives.

    ``<first>.activation_in`` for an input, ``<module>.activation_q`` behind a module, else
    ``<owner>.<operation>_q``.
    """
    if node.meta["kind"] is Kind.INPUT:
        first = next(iter(node.users))
        can_hold = first.op == "call_module" and first.meta["kind"] not in ACTIVATIONS
        return _held_by(model, first, "activation_in") if can_hold else "activation_in"
    if node.op == "call_module":
        return _held_by(model, node, "activation_q")
    owner = node.meta.get("owner", "")
    module = model.get_submodule(owner)
    is_operation = (
        owner != ""
        and not any(True for _ in module.children())
        and not any(True for _ in module.parameters())
    )
    name = "activation_q" if is_operation else f"{node.name.rstrip('_0123456789')}_q"
    return f"{owner}.{name}" if owner else name


def _held_by(model: GraphModel, node: fx.Node, name: str) -> str:
    """``<module>.<name>``; beside a module that runs its children, which a new one would join."""
    runs_children = next(model.get_submodule(str(node.target)).children(), None) is not None
    return f"{node.target}{'_' if runs_children else '.'}{name}"
