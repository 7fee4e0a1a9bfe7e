"""TIDL's import settings, as a file that lies beside a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from edgeailite.files.atomic import write_atomically
from edgeailite.quantization.integer.grid import Grid
from edgeailite.quantization.integer.layer import IntegerLayer


def tidl_settings(converted: nn.Module) -> dict[str, Any]:
    """Options of TIDL's compile step for a model that is quantized already.

    Args:
        converted: The integer graph that the file holds.

    Returns:
        What ``onnxruntime.InferenceSession(..., provider_options=[...])`` of TIDL takes, beside the
        paths of tools and artifacts: the scales of the file hold, nothing is calibrated.
        ``tensor_bits`` is 16 if any grid is wider than 8 bits.
    """
    layers = [m for m in converted.modules() if isinstance(m, IntegerLayer)]
    widths = [layer.operation.weight_quantizer.spec.bit_width for layer in layers]
    grids = [getattr(m, "grid", None) for m in converted.modules()]
    widths += [grid.bit_width for grid in grids if isinstance(grid, Grid)]
    wide = any(width > 8 for width in widths)
    return {
        "tensor_bits": 16 if wide else 8,
        "accuracy_level": 0,
        "advanced_options:prequantized_model": 1,
    }


def write_tidl_settings(converted: nn.Module, model_path: Path) -> Path:
    """Write :func:`tidl_settings` to ``<stem>.tidl.json`` beside a model, whole or not at all."""
    target = model_path.with_suffix(".tidl.json")
    with write_atomically(target) as temporary:
        temporary.write_text(json.dumps(tidl_settings(converted), indent=2) + "\n")
    return target
