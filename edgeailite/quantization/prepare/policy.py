"""Annotations of a graph, and the policy that the annotation rules follow."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import fx, nn

if TYPE_CHECKING:
    from edgeailite.quantization.arithmetic.spec import QConfig, QuantSpec


@dataclass(frozen=True)
class OutputAnnotation:
    """The value of a node is quantized.

    Attributes:
        spec: Its grid.
        path: Where the quantizer lives in the module tree (made unique on insertion).
        bounds: Bounds of an absorbed activation function.
        replaces_node: The node is a ReLU or clamp that the quantizer absorbs.
        replaces_module: The quantizer takes the module's own path.
        shares_scale: It has the scale of the operands, an add's or a concat's.
        softmax_dim: Axis of the softmax that reads it; see :class:`FakeQuantize`.
    """

    spec: QuantSpec
    path: str
    bounds: tuple[float, float] | None = None
    replaces_node: bool = False
    replaces_module: bool = False
    shares_scale: bool = False
    softmax_dim: int | None = None


@dataclass(frozen=True)
class LayerAnnotation:
    """A layer that quantizes its weight and bias, with the batch norm node it folds."""

    qconfig: QConfig
    batch_norm: fx.Node | None = None


@dataclass(frozen=True)
class ModuleAnnotation:
    """A module of the target computes a node.

    Attributes:
        make: Makes it from the node and from the module that the node calls, or None.
        suffix: It lives beside the node's own path, with this suffix; empty: in its module's place.
    """

    make: Callable[[fx.Node, nn.Module | None], nn.Module]
    suffix: str = ""


@dataclass(frozen=True)
class Policy:
    """Configurations that the annotation rules follow; None instead of one leaves in float.

    Attributes:
        qconfig: For every layer and value.
        quantize_in: Quantize the network's inputs.
        quantize_out: Quantize the last quantizable values.
        by_path: Other configurations for modules (and all below them).
        by_pattern: For modules whose path a regular expression matches from its start.
        by_type: For module types, functions and the names of tensor methods.
        residual_bits: Of residual streams (:mod:`~edgeailite.quantization.prepare.residuals`);
            None: as all activations.
    """

    qconfig: QConfig | None
    quantize_in: bool = True
    quantize_out: bool = True
    by_path: dict[str, QConfig | None] = field(default_factory=dict)
    by_pattern: dict[str, QConfig | None] = field(default_factory=dict)
    by_type: dict[Any, QConfig | None] = field(default_factory=dict)
    residual_bits: int | None = None

    @property
    def quantizes_values(self) -> bool:
        """True if values get grids where nothing else is said."""
        return self.qconfig is not None and self.qconfig.activation is not None

    def of(self, path: str, operation: Any = None) -> QConfig | None:
        """The configuration of one operation: by path, then by pattern, then by type.

        Args:
            path: Of the module that is called, or that calls the function; of several entries
                the longest that is it or a parent of it counts.
            operation: The module's type, the function, or the method's name.
        """
        matches = [p for p in self.by_path if path == p or path.startswith(p + ".")]
        if matches:
            return self.by_path[max(matches, key=len)]
        for pattern, qconfig in self.by_pattern.items():
            if re.match(pattern, path):
                return qconfig
        return self.by_type.get(operation, self.qconfig)
