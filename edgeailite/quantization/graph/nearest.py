"""Resizing to nearest neighbours, so that a file takes the neighbours that torch takes.

Torch multiplies places with the reciprocal of the factor, ONNX Runtime divides them by the factor.
Where a quotient is a whole number, one of them may round below it, and take the pixel in front.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes


def gather_neighbours(
    function: Callable[..., Tensor],
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """Resize, by indices where ONNX ``Resize`` takes other values; see ``F.interpolate``."""
    rest = (mode, align_corners, recompute_scale_factor, antialias)
    if "nearest" not in mode:
        return function(input, size, scale_factor, *rest)
    spatial = [int(n) for n in input.shape[2:]]
    sizes, factors = (
        list(value) if isinstance(value, tuple | list) else [value] * len(spatial)
        for value in (size, scale_factor)
    )
    found, known = [], mode == "nearest"
    with _disable_current_modes():
        for count, out, factor in zip(spatial, sizes, factors, strict=True):
            numbers = torch.arange(count, dtype=torch.float32)
            places = function(numbers.reshape(1, 1, -1), out, factor, *rest).flatten().long()
            is_given = factor is not None and not recompute_scale_factor
            ratio = float(factor) if is_given else len(places) / count
            known = known and torch.equal(places, _places_of_resize(count, len(places), ratio))
            found.append(places)
    if known:
        return function(input, size, scale_factor, *rest)
    for axis, places in enumerate(found, 2):
        input = input.index_select(axis, places.to(input.device))
    return input


def _places_of_resize(count: int, size: int, ratio: float) -> Tensor:
    """As ONNX Runtime finds them: ``asymmetric`` coordinates, rounded down, in float32."""
    quotients = torch.arange(size, dtype=torch.float32) / torch.tensor(ratio)
    return torch.floor(quotients).long().clamp(max=count - 1)
