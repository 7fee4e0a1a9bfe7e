"""Residual streams: sums that norms and further sums alone read, as those of a transformer.

Every block adds to such a stream what it computes from its norm; with 8 bits each sum rounds away a
little of all that was added before (FQ-ViT: Lin et al. 2022, https://arxiv.org/abs/2111.13824).
"""

from __future__ import annotations

from torch import fx

from edgeailite.quantization.graph.calls import operation_of, traits_of
from edgeailite.quantization.graph.normalizations import NORMALIZATIONS, SOFTMAXES
from edgeailite.quantization.graph.operations import ADD

_READERS = frozenset(o.name for o in (ADD, *NORMALIZATIONS)) - {o.name for o in SOFTMAXES}


def is_residual_stream(node: fx.Node) -> bool:
    """Return True for a sum that is read, moved or not, by norms and sums alone.

    Not one that a layer reads, as in a ResNet: products of 16-bit values and weights need more than
    the 24 bits that are exact in float32.
    """
    return operation_of(node) is ADD and bool(node.users) and _feeds_norms_and_sums(node)


def _feeds_norms_and_sums(node: fx.Node) -> bool:
    return all(
        operation_of(user).name in _READERS
        or (traits_of(user).moves_values and _feeds_norms_and_sums(user))
        for user in node.users
    )
