"""Rows of functions of all values along axes: softmax and layer norm."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from edgeailite.quantization.graph import traits, variants
from edgeailite.quantization.graph.registry import register_operation as row

_NORMALIZATION = replace(traits.NONE, reads_one=True)
SOFTMAX = row(
    "softmax",
    _NORMALIZATION,
    "input, dim=None, dtype=None",
    variant=variants.known_axes,
    modules=(nn.Softmax,),
    functions=(torch.softmax,),
    methods=("softmax",),
)
FUNCTIONAL_SOFTMAX = row(
    "functional_softmax",
    _NORMALIZATION,
    "input, dim=None, _stacklevel=3, dtype=None",
    variant=variants.known_axes,
    functions=(F.softmax,),
)
LAYER_NORM = row(
    "layer_norm",
    _NORMALIZATION,
    "input, normalized_shape, weight=None, bias=None, eps=1e-05",
    variant=variants.known_axes,
    modules=(nn.LayerNorm,),
    functions=(F.layer_norm,),
)
SOFTMAXES = (SOFTMAX, FUNCTIONAL_SOFTMAX)
NORMALIZATIONS = (SOFTMAX, FUNCTIONAL_SOFTMAX, LAYER_NORM)
