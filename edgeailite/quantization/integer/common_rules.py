"""Conversion rules that all targets share: functions; layers and batch norms placed alone."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from torch import fx, nn

from edgeailite.quantization.graph.calls import operands, operation_of
from edgeailite.quantization.graph.model import module_of, target_of
from edgeailite.quantization.graph.operations import LAYERS, SCALAR
from edgeailite.quantization.graph.patterns import pointwise_chain, quantizer_of
from edgeailite.quantization.integer.conversion import Converter
from edgeailite.quantization.integer.float_modules import ChannelAffine, FloatInputLayer
from edgeailite.quantization.integer.interpolation import IntegerInterpolation
from edgeailite.quantization.integer.layer import IntegerLayer, integer_layer
from edgeailite.quantization.integer.rules import Rules, operands_on_grids
from edgeailite.quantization.integer.table import IntegerTable
from edgeailite.quantization.modules.layer_calls import layer_call
from edgeailite.quantization.modules.normalization import StandaloneBatchNorm, gain_and_offset

if TYPE_CHECKING:
    from edgeailite.quantization.integer.grid import Grid

COMMON = Rules()


def has_integer_input(converter: Converter, node: fx.Node) -> bool:
    """Return True for a quantizing layer whose input lies on a grid."""
    call = layer_call(converter.model, node)
    return call is not None and quantizer_of(call.input_node) is not None


@COMMON.places(*LAYERS)
def place_layer(converter: Converter, node: fx.Node) -> None:
    """A layer whose result no grid holds: real values out; a layer in float is copied."""
    if layer_call(converter.model, node) is None:
        converter.place_copy(node)
    else:
        place_layer_call(converter, node, node, None)


def place_layer_call(
    converter: Converter, node: fx.Node, last: fx.Node, output: Grid | None
) -> None:
    """Place a quantizing layer; `last` is the node whose value it gives.

    Args:
        converter: The pass.
        node: Call of the layer.
        last: The layer's node, or that of the quantizer behind it.
        output: Grid of the result; None: real values.
    """
    call = layer_call(converter.model, node)
    assert call is not None
    grid = converter.grids[call.input_node]
    module: FloatInputLayer | IntegerLayer
    if grid is None:
        module = FloatInputLayer(call.layer, *call.quantized_parameters())
    else:
        module = integer_layer(call, grid, output)
    module.layer_path = call.path
    value = converter.call_layer(call.path, module, call.input_node, call.output_size)
    converter.set(last, value, output if grid is not None else None)


@COMMON.places("element")
def place_element(converter: Converter, node: fx.Node) -> None:
    """A part of a structure, as it is: places of values are no values."""
    converter.set(node, converter.copy(node, converter.value), None)


@COMMON.places("batch_norm")
def place_batch_norm(converter: Converter, node: fx.Node) -> None:
    """A batch norm that no layer folds, in float."""
    module = module_of(converter.model, node)
    if not isinstance(module, StandaloneBatchNorm):
        converter.place_copy(node)
        return
    affine = ChannelAffine(*gain_and_offset(module))
    value = converter.call(str(node.target), affine, converter.real(node.all_input_nodes[0]))
    converter.set(node, value, None)


def has_8_bits(converter: Converter, node: fx.Node) -> bool:
    """Return True for an operand on a grid of at most 8 bits."""
    quantizer = quantizer_of(operands(node)[0])
    return quantizer is not None and converter.quantizer(quantizer).spec.bit_width <= 8


def _lies_on_grid(converter: Converter, node: fx.Node) -> bool:
    """Return True for a function of values on a grid."""
    return operands_on_grids(converter, pointwise_chain(node)[0])


@COMMON.converts("pointwise", when=_lies_on_grid)
def convert_function(converter: Converter, node: fx.Node, quantizer: fx.Node, grid: Grid) -> None:
    """Look the result up, or between which results it lies."""
    functions = pointwise_chain(node)
    (operand,) = operands(functions[0])
    numbers = [n for f in functions for n in f.all_input_nodes if operation_of(n) is SCALAR]
    function = _composed(converter, functions, [operand, *dict.fromkeys(numbers)])
    source, always = converter.grid(operand), target_of(converter.model).writes_tables
    table: IntegerTable | IntegerInterpolation
    if source.bit_width <= 8:
        table = IntegerTable(function, source, grid, always)
    else:
        table = IntegerInterpolation(function, source, grid)
    values = (converter.values[n] for n in (operand, *dict.fromkeys(numbers)))
    converter.set(quantizer, converter.call(str(quantizer.target), table, *values), grid)


def _composed(
    converter: Converter, functions: list[fx.Node], reads: list[fx.Node]
) -> fx.GraphModule:
    """One function of all in a chain, which reads a value and numbers."""
    graph, modules = fx.Graph(), dict[str, nn.Module]()
    values = {node: graph.placeholder(f"x{i}") for i, node in enumerate(reads)}
    for i, node in enumerate(functions):
        made = values[node] = graph.node_copy(node, values.__getitem__)
        made.meta = {}
        if node.op == "call_module":
            module = converter.model.get_submodule(str(made.target))
            made.target, modules[f"f{i}"] = f"f{i}", copy.deepcopy(module)
            modules[f"f{i}"]._modules.clear()  # a quantizer that took a place in it
    graph.output(values[functions[-1]])
    return fx.GraphModule(modules, graph)
