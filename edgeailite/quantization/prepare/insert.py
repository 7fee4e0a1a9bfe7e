"""Mechanism: reads the annotations and puts modules in. Decides nothing."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from edgeailite.quantization.graph.model import GraphModel
from edgeailite.quantization.graph.operations import Kind, average_module, operands
from edgeailite.quantization.graph.twins import replace_modules
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.modules.layer import QuantFunctionalLayer, QuantLayer
from edgeailite.quantization.modules.normalization import (
    StandaloneBatchNorm,
    StandaloneLayerNorm,
    is_foldable,
)
from edgeailite.quantization.modules.pact2 import PACT2
from edgeailite.quantization.prepare.annotate import MOVES_VALUES, LayerAnnotation, OutputAnnotation
from edgeailite.quantization.targets.tinpu.modules import FixedPointAverage, FixedPointBatchNorm

# Twin of each of the model's own modules that gets one.
Twins = dict[nn.Module, nn.Module]


def insert(model: GraphModel) -> None:
    """Insert what the annotations ask for; on a model that has it all, nothing changes.

    Args:
        model: Annotated model; its layers become quantizing ones in place, its graph calls the
            quantizers.
    """
    sharing = []
    for node in list(model.graph.nodes):
        if "quant" in node.meta:
            annotation = node.meta.pop("quant")
            call = _insert_quantizer(model, node, annotation)
            if annotation.shares_scale:
                sharing.append(call)
    for call in sharing:
        _share_scale(model, call)
    twins: Twins = {}
    for node in list(model.graph.nodes):
        if "layer" in node.meta:
            _insert_layer(model, node, node.meta.pop("layer"), twins)
    for node in list(model.graph.nodes):
        if "fixed_point" in node.meta:
            _insert_fixed_point(model, node, node.meta.pop("fixed_point"), twins)
    for node in model.graph.nodes:
        _make_reproducible(model, node, twins)
    replace_modules(model, twins)
    model.tidy()


def _make_reproducible(model: GraphModel, node: fx.Node, twins: Twins) -> None:
    """Norms in float that libraries evaluate differently become twins that all evaluate alike."""
    module = model.module_of(node)
    if module is None or module in twins or isinstance(module, FixedPointBatchNorm):
        return
    if node.meta["kind"] is Kind.BATCH_NORM and is_foldable(module):
        if not any(user.meta["kind"] is Kind.QUANTIZER for user in node.users):
            return  # nothing rounds its result
        if not isinstance(module, StandaloneBatchNorm):
            twins[module] = StandaloneBatchNorm.from_float(module)
    elif type(module) is nn.LayerNorm and _on_power_of_two_grid(model, node.args[0]):
        twins[module] = StandaloneLayerNorm.from_float(module)


def _on_power_of_two_grid(model: GraphModel, value: Any) -> bool:
    quantizer = quantizer_of(model, value)
    module = None if quantizer is None else model.module_of(quantizer)
    return isinstance(module, FakeQuantize) and module.spec.power_of_two


def _share_scale(model: GraphModel, call: fx.Node) -> None:
    """One scale for the result and the operands of an add or a concat."""
    (operation,) = call.all_input_nodes
    nodes = [call, *(quantizer_of(model, operand) for operand in operands(operation))]
    modules = [model.module_of(node) for node in nodes if node is not None]
    FakeQuantize.share_scale([m for m in modules if isinstance(m, FakeQuantize)])


def _insert_fixed_point(model: GraphModel, node: fx.Node, bits: int | None, twins: Twins) -> None:
    """Make a batch norm or an average compute with offset, multiplier and shift."""
    source = quantizer_of(model, node.all_input_nodes[0])
    (output,) = node.users
    module = model.module_of(node)
    if node.meta["kind"] is Kind.BATCH_NORM:
        assert module is not None
        twins[module] = FixedPointBatchNorm.from_float(twins.get(module, module), bits)
    else:
        path = str(node.target) if module is not None else _operation_path(node)
        path = model.free_path(f"{path}_sums")
        model.add_module_at(path, FixedPointAverage(average_module(node, module)))
        operand = node.all_input_nodes[0]
        with model.graph.inserting_before(node):
            call = model.graph.call_module(path, (operand,))
        call.meta.update(node.meta)
        node.replace_all_uses_with(call)
        model.graph.erase_node(node)
        node = call
    references = {"output_quantizer": _module_reference(model, node, str(output.target))}
    if source is not None:
        references["input_quantizer"] = _module_reference(model, node, str(source.target))
    node.kwargs = {**node.kwargs, **references}


def _operation_path(node: fx.Node) -> str:
    """``<owner>.<operation>`` of a function or method."""
    owner, name = node.meta.get("owner", ""), node.name.rstrip("_0123456789")
    return f"{owner}.{name}" if owner else name


def _insert_quantizer(model: GraphModel, node: fx.Node, annotation: OutputAnnotation) -> fx.Node:
    quantizer = PACT2.from_spec(annotation.spec, annotation.bounds)
    path = annotation.path if annotation.replaces_module else model.free_path(annotation.path)
    quantizer.name = path
    quantizer.train(model.training)
    model.add_module_at(path, quantizer)
    with model.graph.inserting_after(node):
        call = model.graph.call_module(path)
    call.meta.update(kind=Kind.QUANTIZER, owner=node.meta.get("owner", ""))
    node.replace_all_uses_with(call)
    call.args = (node.args[0] if annotation.replaces_node else node,)
    quantizer.inplace = _may_overwrite(call)
    if annotation.replaces_node:
        model.graph.erase_node(node)
    return call


def _may_overwrite(quantizer: fx.Node) -> bool:
    """Whether nothing but the quantizer reads its input, not even its producer's backward pass."""
    (operand,) = quantizer.all_input_nodes
    fresh = (
        Kind.LAYER, Kind.BATCH_NORM, Kind.ADD, Kind.SUB, Kind.MUL,
        Kind.MATMUL, Kind.CAT, Kind.RESIZE,
    )  # fmt: skip
    return len(operand.users) == 1 and operand.meta["kind"] in fresh


def quantizer_of(model: GraphModel, node: Any) -> fx.Node | None:
    """The quantizer node whose grid a node's value lies on; None for a float value."""
    while isinstance(node, fx.Node):
        if node.meta["kind"] is Kind.QUANTIZER:
            return node
        if node.meta["kind"] not in (*MOVES_VALUES, Kind.FORCE):
            return None
        node = node.args[0] if node.args else None
    return None


def _module_reference(model: GraphModel, before: fx.Node, path: str) -> fx.Node:
    with model.graph.inserting_before(before):
        reference = model.graph.get_attr(path)
    reference.meta["kind"] = Kind.SCALAR
    return reference


def _insert_layer(
    model: GraphModel, node: fx.Node, annotation: LayerAnnotation, twins: Twins
) -> None:
    qconfig, batch_norm = annotation.qconfig, annotation.batch_norm
    assert qconfig.weight is not None
    source = quantizer_of(model, node.args[0] if node.args else node.kwargs["input"])
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        layer = QuantLayer.from_float(twins.get(module, module), qconfig.weight, qconfig.bias)
        layer.weight_quantizer.starts_soft = qconfig.soft_weight
        twins[module] = layer
    else:
        node = _lift_function(model, node, annotation)
    references = {}
    if batch_norm is not None:
        references["batch_norm"] = _module_reference(model, node, str(batch_norm.target))
        batch_norm.replace_all_uses_with(node)
        model.graph.erase_node(batch_norm)
    if source is not None:
        references["input_quantizer"] = _module_reference(model, node, str(source.target))
    output = next(iter(node.users))
    behind = model.module_of(output)
    if isinstance(behind, FakeQuantize) and behind.spec.rounding == "floor":
        references["output_quantizer"] = _module_reference(model, node, str(output.target))
    node.kwargs = {**node.kwargs, **references}


def _lift_function(model: GraphModel, node: fx.Node, annotation: LayerAnnotation) -> fx.Node:
    """Make ``F.conv2d(x, w, b, ...)`` a module call with ``x, w, b``; the module holds the rest."""
    names = _parameters_of(node)
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    tensors = tuple(given.pop(name, None) for name in names[:3])
    qconfig = annotation.qconfig
    assert qconfig.weight is not None
    assert callable(node.target)
    layer = QuantFunctionalLayer(node.target, given, qconfig.weight, qconfig.bias)
    layer.weight_quantizer.starts_soft = qconfig.soft_weight
    owner = node.meta.get("owner", "")
    path = model.free_path(_operation_path(node))
    model.add_module_at(path, layer)
    with model.graph.inserting_after(node):
        call = model.graph.call_module(path, tensors)
    call.meta.update(kind=Kind.LAYER, owner=owner)
    node.replace_all_uses_with(call)
    model.graph.erase_node(node)
    return call


def _parameters_of(node: fx.Node) -> tuple[str, ...]:
    """Argument names of a functional layer; torch's builtins have no signature to read."""
    assert callable(node.target)
    name = node.target.__name__
    tensors = ("input", "weight", "bias")
    if name == "linear":
        return tensors
    if "transpose" in name:
        return (*tensors, "stride", "padding", "output_padding", "groups", "dilation")
    return (*tensors, "stride", "padding", "dilation", "groups")
