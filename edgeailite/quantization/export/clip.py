"""The float graph with clips, from which TIDL derives power-of-two scales.

Convolutions and linears with batch norm folded and weights on their grid, ``Clip(0, 2^m)`` or
``Clip(-2^m, 2^m)`` for every activation quantizer, no quantize nodes.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from edgeailite.quantization.convert import FixedLayer
from edgeailite.quantization.export.onnx_file import write_onnx
from edgeailite.quantization.fake_quantize import FakeQuantize
from edgeailite.quantization.graph import GraphModel
from edgeailite.quantization.operators import Kind
from edgeailite.quantization.units import layer_units


class Clip(nn.Module):
    """Clip to the range of an activation quantizer."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return torch.clamp(x, self.low, self.high)


def clip_range(quantizer: FakeQuantize) -> tuple[float, float]:
    """The range of the grid, cut by an absorbed activation's bounds: ``(0, 2^m)`` or ``(-2^m, 2^m)``.

    Affine grids: from the smallest to the largest value.
    """
    scale, zero_point, quant_min, quant_max = (float(v) for v in quantizer.qparams())
    top = quant_max + 1 if quantizer.spec.symmetric and quantizer.spec.power_of_two else quant_max
    low, high = (quant_min - zero_point) * scale, (top - zero_point) * scale
    if quantizer.bounds is not None:
        low, high = max(low, quantizer.bounds[0]), min(high, quantizer.bounds[1])
    return low, high


@torch.no_grad()
def clip_model(model: GraphModel) -> GraphModel:
    """A copy of a prepared model as a plain float graph with clips, in evaluation mode."""
    plain = copy.deepcopy(model).eval()
    plain.classify()
    for unit in layer_units(plain):
        fixed = FixedLayer(unit.layer, *unit.quantized_parameters())
        path = plain.free_path(f"{unit.path}_folded")
        plain.add_module_at(path, fixed)
        unit.node.target, unit.node.args, unit.node.kwargs = path, (unit.input_node,), {}
    for node in plain.graph.nodes:
        module = plain.module_of(node)
        if node.meta["kind"] is Kind.QUANTIZER and isinstance(module, FakeQuantize):
            path = plain.free_path(f"{node.target}_clip")
            plain.add_module_at(path, Clip(*clip_range(module)))
            node.target = path
    plain.export_view = None
    plain.tidy()
    return plain


def export_clip(
    model: GraphModel,
    example_inputs: tuple[Tensor, ...],
    path: str | os.PathLike[str],
    *,
    opset_version: int = 18,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_batch: bool = True,
) -> Path:
    """Write :func:`clip_model` of a prepared model as ONNX; arguments as in :func:`write_onnx`."""
    return write_onnx(
        clip_model(model), example_inputs, path, opset_version=opset_version, input_names=input_names,
        output_names=output_names, dynamic_batch=dynamic_batch, metadata={"model_format": "clip"},
    )  # fmt: skip
