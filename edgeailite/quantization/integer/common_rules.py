"""Conversion rules that all targets share: layers and batch norms that are placed alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from edgeailite.quantization.graph.model import module_of
from edgeailite.quantization.graph.operations import LAYERS
from edgeailite.quantization.graph.patterns import quantizer_of
from edgeailite.quantization.integer.conversion import Converter
from edgeailite.quantization.integer.float_modules import ChannelAffine, FloatInputLayer
from edgeailite.quantization.integer.layer import IntegerLayer, integer_layer
from edgeailite.quantization.integer.rules import Rules
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
