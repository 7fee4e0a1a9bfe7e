"""Prepared models as plain graphs: layers folded and on their grids, a stand-in per quantizer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from edgeailite.quantization.graph.model import GraphModel
from edgeailite.quantization.graph.operations import Kind
from edgeailite.quantization.integer.conversion import FixedLayer
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.modules.layer_calls import attribute, layer_calls
from edgeailite.quantization.targets.tinpu.modules import FixedPointAverage, FixedPointBatchNorm


@torch.no_grad()
def plain_model(model: GraphModel, stand_in: Callable[[FakeQuantize], nn.Module]) -> GraphModel:
    """A copy of a prepared model, in evaluation mode, without anything that only training needs.

    Args:
        model: Prepared. Not changed.
        stand_in: Makes what takes an activation quantizer's place.

    Returns:
        Batch norm is folded, weights and biases lie on their grids, in float.
    """
    plain = copy.deepcopy(model).eval()
    plain.classify()
    for unit in layer_calls(plain):
        fixed = FixedLayer(unit.layer, *unit.quantized_parameters())
        fixed.layer_path = unit.path
        path = plain.free_path(f"{unit.path}_folded")
        plain.add_module_at(path, fixed)
        unit.node.target, unit.node.args, unit.node.kwargs = path, (unit.input_node,), {}
    for node in plain.graph.nodes:
        module = plain.module_of(node)
        if isinstance(module, FixedPointBatchNorm | FixedPointAverage):
            _freeze(plain, node, module)
        elif node.meta["kind"] is Kind.QUANTIZER and isinstance(module, FakeQuantize):
            path = plain.free_path(f"{node.target}_plain")
            replacement = stand_in(module)
            replacement.quantizer_path = str(node.target)  # type: ignore[assignment]
            plain.add_module_at(path, replacement)
            node.target = path
    plain.export_view = None
    plain.tidy()
    return plain


def _freeze(
    plain: GraphModel, node: fx.Node, module: FixedPointBatchNorm | FixedPointAverage
) -> None:
    """Let a module without quantizers compute what `module` does at `node`."""
    quantizers: dict[str, Any] = {
        name: attribute(plain, str(reference.target))
        for name, reference in node.kwargs.items()
        if isinstance(reference, fx.Node)
    }
    path = plain.free_path(f"{node.target}_fixed")
    plain.add_module_at(path, module.frozen(**quantizers))
    node.target, node.args, node.kwargs = path, node.args[:1], {}
