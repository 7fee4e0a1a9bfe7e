"""Prepared models as plain graphs: layers folded and on their grids, a stand-in per quantizer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from edgeailite.quantization.arithmetic.quotient import quotient
from edgeailite.quantization.graph.model import (
    add_module_at,
    attribute,
    drop_training_result,
    free_path,
    graph_of,
    program_of,
    tidy,
)
from edgeailite.quantization.integer.float_modules import FloatInputLayer
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.modules.layer_calls import LayerCall, layer_calls
from edgeailite.quantization.modules.quotient import Quotient

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel


@torch.no_grad()
def plain_model(model: GraphModel, stand_in: Callable[[FakeQuantize], nn.Module]) -> GraphModel:
    """Copy a prepared model, in evaluation mode, without anything that only training needs.

    Args:
        model: Prepared. Not changed.
        stand_in: Makes the module that takes an activation quantizer's place.

    Returns:
        Batch norm is folded, weights and biases lie on their grids, in float.

    Raises:
        ValueError: An activation range has never seen data; the message names it.
    """
    plain = copy.deepcopy(model).eval()
    drop_training_result(plain)
    for call in layer_calls(plain):
        _place_folded(plain, call)
    for node in graph_of(plain).find_nodes(op="call_module"):
        module = plain.get_submodule(str(node.target))
        if "output_quantizer" in node.kwargs:
            _freeze(plain, node, module)
        elif isinstance(module, Quotient):
            node.op, node.target = "call_function", quotient
            node.args = (*node.args, float(module.half_step()))
        elif isinstance(module, FakeQuantize):
            module.require_range(str(node.target))
            replacement = stand_in(module)
            replacement.quantizer_path = str(node.target)  # type: ignore[assignment]
            _call_instead(plain, node, f"{node.target}_plain", replacement)
    program = program_of(plain)
    program.export_view, program.stage = None, "plain"
    tidy(plain)
    return plain


def _place_folded(plain: GraphModel, call: LayerCall) -> None:
    """Call a layer that holds the folded weight and bias, on their grids."""
    folded = FloatInputLayer(call.layer, *call.quantized_parameters())
    folded.layer_path = call.path
    input_node, output_size = call.input_node, call.output_size
    _call_instead(plain, call.node, f"{call.path}_folded", folded)
    call.node.args, call.node.kwargs = (input_node,), {}
    if output_size is not None:
        call.node.update_kwarg("output_size", output_size)


def _freeze(plain: GraphModel, node: fx.Node, module: Any) -> None:
    """Call the module that `module` offers for the current grids of its quantizers.

    A module that insertion gave an ``output_quantizer`` offers ``frozen``: a module without
    quantizers that computes the same.
    """
    quantizers: dict[str, Any] = {
        name: attribute(plain, str(reference.target))
        for name, reference in node.kwargs.items()
        if isinstance(reference, fx.Node)
    }
    _call_instead(plain, node, f"{node.target}_fixed", module.frozen(**quantizers))
    node.args, node.kwargs = node.args[:1], {}


def _call_instead(plain: GraphModel, node: fx.Node, path: str, module: nn.Module) -> None:
    """Register `module` under `path`, or a free path like it, and let `node` call it."""
    path = free_path(plain, path)
    add_module_at(plain, path, module)
    node.target = path
