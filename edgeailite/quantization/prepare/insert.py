"""Insertion: reads the annotations and puts modules in. Decides nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from edgeailite.quantization.graph.calls import (
    Call,
    arguments,
    operands,
    operation_of,
    traits_of,
)
from edgeailite.quantization.graph.model import add_module_at, free_path, graph_of, module_of, tidy
from edgeailite.quantization.graph.operations import BATCH_NORM, QUANTIZER, SCALAR
from edgeailite.quantization.graph.patterns import (
    is_foldable,
    is_operand,
    operation_path,
    quantizer_of,
)
from edgeailite.quantization.graph.twins import replace_modules
from edgeailite.quantization.graph.variants import is_constant
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.modules.functional_layer import QuantFunctionalLayer
from edgeailite.quantization.modules.layer import QuantLayer
from edgeailite.quantization.modules.normalization import StandaloneBatchNorm, StandaloneLayerNorm
from edgeailite.quantization.modules.pact2 import PACT2

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel
    from edgeailite.quantization.prepare.policy import (
        LayerAnnotation,
        ModuleAnnotation,
        OutputAnnotation,
    )

# Twin of each of the model's own modules that gets one.
Twins = dict[nn.Module, nn.Module]


def insert(model: GraphModel) -> None:
    """Insert what the annotations ask for; on a model that has it all, nothing changes.

    Args:
        model: Annotated model; its layers become quantizing ones in place, its graph calls the
            quantizers.
    """
    sharing = []
    for node in list(graph_of(model).nodes):
        if "quant" in node.meta:
            annotation = node.meta.pop("quant")
            call = _insert_quantizer(model, node, annotation)
            if annotation.shares_scale:
                sharing.append(call)
    for call in sharing:
        _share_scale(model, call)
    twins: Twins = {}
    for node in list(graph_of(model).nodes):
        if "layer" in node.meta:
            _insert_layer(model, node, node.meta.pop("layer"), twins)
    for node in list(graph_of(model).nodes):
        if "module" in node.meta:
            _insert_module(model, node, node.meta.pop("module"), twins)
    for node in graph_of(model).nodes:
        _make_reproducible(model, node, twins)
    replace_modules(model, twins)
    tidy(model)


# ---- quantizers ---------------------------------------------------------------------------------


def _insert_quantizer(model: GraphModel, node: fx.Node, annotation: OutputAnnotation) -> fx.Node:
    quantizer = PACT2.from_spec(annotation.spec, annotation.bounds)
    path = annotation.path if annotation.replaces_module else free_path(model, annotation.path)
    quantizer.name = path
    quantizer.softmax_dim = annotation.softmax_dim
    quantizer.averages_ranges = not is_constant(node)
    quantizer.train(model.training)
    add_module_at(model, path, quantizer)
    with graph_of(model).inserting_after(node):
        call = graph_of(model).call_module(path)
    call.meta.update(call=Call(QUANTIZER), owner=node.meta.get("owner", ""))
    node.replace_all_uses_with(call, lambda user: not is_constant(node) or is_operand(node, user))
    call.args = (node.args[0] if annotation.replaces_node else node,)
    quantizer.inplace = _may_overwrite(call)
    if annotation.replaces_node:
        graph_of(model).erase_node(node)
    return call


def _may_overwrite(quantizer: fx.Node) -> bool:
    """Return True if nothing else reads the quantizer's input, not even a backward pass."""
    (operand,) = quantizer.all_input_nodes
    return len(operand.users) == 1 and traits_of(operand).may_overwrite


def _share_scale(model: GraphModel, call: fx.Node) -> None:
    """One scale for the result and the operands of an add or a concat."""
    (operation,) = call.all_input_nodes
    nodes = [call, *(quantizer_of(operand) for operand in operands(operation))]
    modules = [module_of(model, node) for node in nodes if node is not None]
    FakeQuantize.share_scale([m for m in modules if isinstance(m, FakeQuantize)])


# ---- layers -------------------------------------------------------------------------------------


def _insert_layer(
    model: GraphModel, node: fx.Node, annotation: LayerAnnotation, twins: Twins
) -> None:
    qconfig, batch_norm = annotation.qconfig, annotation.batch_norm
    assert qconfig.weight is not None
    source = quantizer_of(operands(node)[0])
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        layer = QuantLayer.from_float(twins.get(module, module), qconfig.weight, qconfig.bias)
        twins[module] = layer
        layer.weight_quantizer.starts_soft = qconfig.soft_weight
    else:
        node = _lift_function(model, node, annotation)
    references = {}
    if batch_norm is not None:
        references["batch_norm"] = _reference(model, node, str(batch_norm.target))
        batch_norm.replace_all_uses_with(node)
        graph_of(model).erase_node(batch_norm)
    if source is not None:
        references["input_quantizer"] = _reference(model, node, str(source.target))
    output = next(iter(node.users))
    behind = module_of(model, output)
    if isinstance(behind, FakeQuantize) and behind.spec.rounding == "floor":
        references["output_quantizer"] = _reference(model, node, str(output.target))
    _name_output_size(node)
    node.kwargs = {**node.kwargs, **references}


def _name_output_size(node: fx.Node) -> None:
    """Give the output size of a transposed convolution by keyword, as :class:`QuantLayer` does."""
    call: Call = node.meta["call"]
    if call.places.get("output_size") == 1:
        node.args, node.kwargs = node.args[:1], {**node.kwargs, "output_size": node.args[1]}
        node.meta["call"] = replace(call, places={**call.places, "output_size": "output_size"})


def _lift_function(model: GraphModel, node: fx.Node, annotation: LayerAnnotation) -> fx.Node:
    """Make ``F.conv2d(x, w, b, ...)`` a module call with ``x, w, b``; the module holds the rest."""
    options = arguments(node)
    tensors = tuple(options.pop(name) for name in ("input", "weight", "bias"))
    options.pop("output_size", None)  # of modules alone
    qconfig = annotation.qconfig
    assert qconfig.weight is not None
    assert callable(node.target)
    layer = QuantFunctionalLayer(node.target, options, qconfig.weight, qconfig.bias)
    layer.weight_quantizer.starts_soft = qconfig.soft_weight
    path = free_path(model, operation_path(node))
    add_module_at(model, path, layer)
    with graph_of(model).inserting_after(node):
        call = graph_of(model).call_module(path, tensors)
    places = {"input": 0, "weight": 1, "bias": 2}
    read = Call(operation_of(node), places, {**options, "output_size": None})
    call.meta.update(call=read, owner=node.meta.get("owner", ""))
    node.replace_all_uses_with(call)
    graph_of(model).erase_node(node)
    return call


# ---- modules of the target, and norms in float --------------------------------------------------


def _insert_module(
    model: GraphModel, node: fx.Node, annotation: ModuleAnnotation, twins: Twins
) -> None:
    """Let a module of the target compute a node, with the quantizers around it at hand."""
    source = quantizer_of(operands(node)[0])
    (output,) = node.users
    module = module_of(model, node)
    made = annotation.make(node, None if module is None else twins.get(module, module))
    if not annotation.suffix:
        assert module is not None
        twins[module] = made
    else:
        path = str(node.target) if module is not None else operation_path(node)
        path = free_path(model, f"{path}{annotation.suffix}")
        add_module_at(model, path, made)
        with graph_of(model).inserting_before(node):
            call = graph_of(model).call_module(path, (operands(node)[0],))
        call.meta.update(node.meta)
        node.replace_all_uses_with(call)
        graph_of(model).erase_node(node)
        node = call
    references = {"output_quantizer": _reference(model, node, str(output.target))}
    if source is not None:
        references["input_quantizer"] = _reference(model, node, str(source.target))
    node.kwargs = {**node.kwargs, **references}


def _reference(model: GraphModel, before: fx.Node, path: str) -> fx.Node:
    """Node that gives a call the module at `path`."""
    with graph_of(model).inserting_before(before):
        reference = graph_of(model).get_attr(path)
    reference.meta["call"] = Call(SCALAR)
    return reference


def _make_reproducible(model: GraphModel, node: fx.Node, twins: Twins) -> None:
    """Norms in float that libraries evaluate differently become twins that all evaluate alike."""
    module = module_of(model, node)
    if module is None or module in twins or "output_quantizer" in node.kwargs:
        return
    if operation_of(node) is BATCH_NORM and is_foldable(module):
        # Where nothing rounds its result, nothing has to be reproducible.
        is_rounded = any(operation_of(user) is QUANTIZER for user in node.users)
        if is_rounded and not isinstance(module, StandaloneBatchNorm):
            twins[module] = StandaloneBatchNorm.from_float(module)
    elif type(module) is nn.LayerNorm and _on_power_of_two_grid(model, node.args[0]):
        twins[module] = StandaloneLayerNorm.from_float(module)


def _on_power_of_two_grid(model: GraphModel, value: Any) -> bool:
    quantizer = quantizer_of(value)
    module = None if quantizer is None else module_of(model, quantizer)
    return isinstance(module, FakeQuantize) and module.spec.power_of_two
