"""Types of values: shape and dtype of tensors, and structures of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx


@dataclass(frozen=True)
class TensorType:
    """Type of a tensor.

    Attributes:
        shape: Its shape with the example input.
        dtype: Its element type.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def is_float(self) -> bool:
        """True for floating-point elements."""
        return self.dtype.is_floating_point


def type_of(value: Any) -> Any:
    """A :class:`TensorType`; a tuple or dict of types; else the class of the value."""
    if isinstance(value, Tensor):
        return TensorType(tuple(value.shape), value.dtype)
    if isinstance(value, tuple | list):
        return tuple(map(type_of, value))
    if isinstance(value, Mapping):
        return {key: type_of(part) for key, part in value.items()}
    return type(value)


def is_known_not_to_be_float(node: fx.Node) -> bool:
    """Return True if the type of a node's value is known, and it is no floating-point tensor."""
    known = node.meta.get("type")
    if known is None:
        return False
    return not (isinstance(known, TensorType) and known.is_float)
