"""Remarks on a model's comparison with ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edgeailite.quantization.integer.grid import Quantize, Requantize
from edgeailite.quantization.integer.layer import IntegerLayer

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel


def has_free_scales(converted: GraphModel) -> bool:
    """Return True if a scale is no power of two: the simulation may then differ by a step."""
    grids = [m.grid for m in converted.modules() if isinstance(m, Quantize | Requantize)]
    return any(not grid.is_power_of_two for grid in grids)


def model_notes(converted: GraphModel) -> list[str]:
    """Return remarks on a model's comparison with ONNX Runtime, from its own numbers."""
    layers = [m for m in converted.modules() if isinstance(m, IntegerLayer)]
    risky = [m.layer_path for m in layers if _can_saturate(m)]
    notes = []
    if has_free_scales(converted):
        notes.append(
            "free scales: with optimizations off ONNX Runtime sums floats, which differs by a step "
            "on rare ties; its integer kernels run with optimizations on"
        )
    if layers:
        notes.append(
            f"{len(risky)} of {len(layers)} layers could saturate u8*s8 kernels of a CPU without "
            f"VNNI, the first: '{risky[0]}'"
            if risky
            else "no layer can saturate the u8*s8 kernels of a CPU without VNNI"
        )
    return notes


def _can_saturate(layer: IntegerLayer) -> bool:
    """True if two products of unsigned inputs and weights can exceed 16 bits in one sum."""
    grid = layer.input.grid
    if grid.signed or layer.weight.dtype != torch.int8:
        return False
    rows = layer.operation.rows(layer.weight.float())
    pairs = min(2, rows.shape[1])
    largest = max(
        float(part.clamp_min(0).topk(pairs, dim=1).values.sum(1).max()) for part in (rows, -rows)
    )
    return largest * grid.quant_max > (1 << 15) - 1
