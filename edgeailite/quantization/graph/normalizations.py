"""Rows of functions of all values along axes: softmax, lengths, division by a spread or length."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from edgeailite.quantization.graph import traits, variants
from edgeailite.quantization.graph.norm_along import NormAlong
from edgeailite.quantization.graph.registry import each
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
row(
    "log_softmax",
    traits.NONE,
    variant=variants.logarithm_of_softmax,
    modules=(nn.LogSoftmax,),
    functions=(torch.log_softmax, F.log_softmax),
    methods=("log_softmax",),
)
LAYER_NORM = row(
    "layer_norm",
    _NORMALIZATION,
    "input, normalized_shape, weight=None, bias=None, eps=1e-05",
    variant=variants.known_axes,
    modules=(nn.LayerNorm,),
    functions=(F.layer_norm,),
)
RMS_NORM = row(
    "rms_norm",
    _NORMALIZATION,
    "input, normalized_shape, weight=None, eps=None",
    variant=variants.known_axes,
    modules=(nn.RMSNorm,),
    functions=(F.rms_norm, torch.rms_norm),
)
GROUP_NORM = row(
    "group_norm",
    _NORMALIZATION,
    "input, num_groups, weight=None, bias=None, eps=1e-05",
    variant=variants.known_axes,
    modules=(nn.GroupNorm,),
    functions=(F.group_norm,),
)
INSTANCE_NORM = row(
    "instance_norm",
    _NORMALIZATION,
    "input, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, "
    "momentum=0.1, eps=1e-05",
    variant=variants.statistics_of_each_image,
    modules=each(nn, "InstanceNorm{}d"),
    functions=(F.instance_norm,),
)
NORMALIZE = row(
    "normalize",
    replace(_NORMALIZATION, keeps_sign=True),
    "input, p=2.0, dim=1, eps=1e-12, out=None",
    variant=variants.euclidean,
    functions=(F.normalize,),
)
VECTOR_NORM = row(
    "vector_norm",
    replace(_NORMALIZATION, keeps_sign=True),
    "input, p='fro', dim=None, keepdim=False, dtype=None",
    aliases={"ord": "p"},
    variant=variants.euclidean_length,
    functions=(torch.linalg.vector_norm, torch.linalg.norm),
    methods=("norm",),
)
NORM = row(
    "norm",
    VECTOR_NORM.traits,
    "input, p='fro', dim=None, keepdim=False, out=None, dtype=None",
    variant=variants.euclidean_length,
    functions=(torch.norm,),
)
NORM_ALONG = row(
    "norm_along",
    _NORMALIZATION,
    "input, weight=None, bias=None, dim=None, eps=0.0, centered=True",
    modules=(NormAlong,),
)
SOFTMAXES = (SOFTMAX, FUNCTIONAL_SOFTMAX)
NORMALIZATIONS = (
    *(SOFTMAX, FUNCTIONAL_SOFTMAX, LAYER_NORM, RMS_NORM, GROUP_NORM, INSTANCE_NORM, NORMALIZE),
    *(VECTOR_NORM, NORM, NORM_ALONG),
)
