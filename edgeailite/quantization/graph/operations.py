"""The table of operations: one row for each, with its calls, its arguments and its traits.

A row is all that the engine knows about an operation, except how a target computes it: that is a
conversion rule of the target. To add an operation see CONTRIBUTING.md.
"""

from __future__ import annotations

import math
import operator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from edgeailite.quantization.graph import traits, variants
from edgeailite.quantization.graph.modes import TrainingOnly, is_training
from edgeailite.quantization.graph.registry import each
from edgeailite.quantization.graph.registry import register_operation as row

# ---- parts of a graph ---------------------------------------------------------------------------

INPUT = row("input", traits.NONE)
OUTPUT = row("output", traits.NONE)
UNKNOWN = row("unknown", traits.NONE)
SCALAR = row(
    "scalar",
    traits.NONE,
    functions=(is_training, getattr, len, int, operator.floordiv, math.floor, math.ceil),
    methods=("size", "dim", "numel", "ndimension"),
)
# The engine's own modules register themselves.
QUANTIZER = row(
    "quantizer", replace(traits.NONE, reads_one=True, keeps_sign=True, keeps_channels=True)
)
QUANTIZE_HERE = row("quantize_here", traits.MARK)
KEEP_IN_FLOAT = row("keep_in_float", traits.MARK)

# ---- layers -------------------------------------------------------------------------------------


CONVOLUTION = row(
    "convolution",
    traits.LAYER,
    "input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1",
    modules=each(nn, "Conv{}d"),
    functions=each(F, "conv{}d"),
)
TRANSPOSED_CONVOLUTION = row(
    "transposed_convolution",
    traits.LAYER,
    "input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1",
    modules=each(nn, "ConvTranspose{}d"),
    functions=each(F, "conv_transpose{}d"),
)
LINEAR = row(
    "linear", traits.LAYER, "input, weight, bias=None", modules=(nn.Linear,), functions=(F.linear,)
)
LAYERS = (CONVOLUTION.name, TRANSPOSED_CONVOLUTION.name, LINEAR.name)
BATCH_NORM_MODULES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
BATCH_NORM = row(
    "batch_norm", replace(traits.NONE, may_overwrite=True), "input", modules=BATCH_NORM_MODULES
)

# ---- activation functions -----------------------------------------------------------------------

RELU = row(
    "relu",
    replace(traits.ACTIVATION, keeps_channels=True),
    "input, inplace=False",
    modules=(nn.ReLU,),
    functions=(F.relu, F.relu_, torch.relu, torch.relu_),
    methods=("relu", "relu_"),
)
RELU6 = row(
    "relu6",
    traits.ACTIVATION,
    "input, inplace=False",
    bounds=(0.0, 6.0),
    modules=(nn.ReLU6,),
    functions=(F.relu6,),
)
HARDTANH = row(
    "hardtanh",
    traits.ACTIVATION,
    "input, min_val=-1.0, max_val=1.0, inplace=False",
    bounds=("min_val", "max_val"),
    modules=(nn.Hardtanh,),
    functions=(F.hardtanh, F.hardtanh_),
)
CLAMP = row(
    "clamp",
    traits.ACTIVATION,
    "input, min=None, max=None",
    bounds=("min", "max"),
    functions=(torch.clamp, torch.clip),
    methods=("clamp", "clamp_", "clip", "clip_"),
)

# ---- arithmetic ---------------------------------------------------------------------------------

ADD = row(
    "add",
    replace(traits.ARITHMETIC, keeps_sign=True, keeps_channels=True, joins_grids=True),
    "input, other, alpha=1",
    variant=variants.between_tensors,
    functions=(operator.add, operator.iadd, torch.add),
    methods=("add", "add_"),
)
SUB = row(
    "sub",
    replace(traits.ARITHMETIC, keeps_channels=True),
    "input, other, alpha=1",
    variant=variants.between_tensors,
    functions=(operator.sub, operator.isub, torch.sub),
    methods=("sub", "sub_"),
)
MUL = row(
    "mul",
    replace(traits.ARITHMETIC, keeps_sign=True),
    "input, other",
    variant=variants.between_tensors,
    functions=(operator.mul, operator.imul, torch.mul),
    methods=("mul", "mul_"),
)
row(
    "div_or_pow",  # known for the report's sake: no target computes it
    traits.NONE,
    "input, other, rounding_mode=None",
    variant=variants.between_tensors,
    functions=(operator.truediv, operator.itruediv, torch.div, operator.pow, torch.pow),
    methods=("div", "div_", "pow"),
)
row(
    "matmul",
    traits.ARITHMETIC,
    "input, other",
    variant=variants.between_tensors,
    functions=(operator.matmul, torch.matmul, torch.bmm),
    methods=("matmul", "bmm"),
)
EINSUM = row(
    "einsum",
    traits.ARITHMETIC,
    "equation, *operands",
    variant=variants.between_tensors,
    functions=(torch.einsum,),
)
CAT = row(
    "cat",
    replace(traits.ARITHMETIC, keeps_sign=True, joins_grids=True, concatenates=True),
    "tensors, dim=0",
    functions=(torch.cat, torch.concat, torch.concatenate),
)
STACK = row("stack", CAT.traits, "tensors, dim=0", functions=(torch.stack,))

# ---- averages and resizing ----------------------------------------------------------------------

AVG_POOL = row(
    "avg_pool",
    traits.AVERAGE,
    "input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, "
    "divisor_override=None",
    modules=each(nn, "AvgPool{}d"),
    functions=each(F, "avg_pool{}d"),
)
ADAPTIVE_AVG_POOL = row(
    "adaptive_avg_pool",
    traits.AVERAGE,
    "input, output_size",
    modules=each(nn, "AdaptiveAvgPool{}d"),
    functions=each(F, "adaptive_avg_pool{}d"),
)
MEAN = row(
    "mean",
    traits.AVERAGE,
    "input, dim=None, keepdim=False, dtype=None",
    functions=(torch.mean,),
    methods=("mean",),
)
_RESIZE_PARAMETERS = (
    "input, size=None, scale_factor=None, mode='nearest', align_corners=None, "
    "recompute_scale_factor=None, antialias=False"
)
row(
    "resize",
    replace(traits.AVERAGE, averages=False, may_overwrite=True),
    _RESIZE_PARAMETERS,
    variant=variants.interpolation,
    modules=(nn.Upsample,),
    functions=(F.interpolate, F.upsample),
)

# ---- operations that move values ----------------------------------------------------------------

MAX_POOL = row(
    "max_pool",
    traits.MOVE_IN_CHANNEL,
    "input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False",
    variant=variants.largest_values,
    onnx=("MaxPool",),
    modules=each(nn, "MaxPool{}d"),
    functions=each(F, "_max_pool{}d") + each(torch, "max_pool{}d"),
)
row(
    "adaptive_max_pool",
    traits.MOVE_IN_CHANNEL,
    "input, output_size, return_indices=False",
    variant=variants.largest_adaptive_values,
    modules=each(nn, "AdaptiveMaxPool{}d"),
    functions=each(F, "_adaptive_max_pool{}d"),
)
row(
    "extreme",
    traits.MOVE,
    "input, dim=(), keepdim=False",
    onnx=("ReduceMax", "ReduceMin"),
    functions=(torch.amax, torch.amin),
    methods=("amax", "amin"),
)
row("resize_nearest", traits.MOVE_IN_CHANNEL, _RESIZE_PARAMETERS, onnx=("Resize",))
row(
    "pad",
    traits.MOVE_IN_CHANNEL,
    "input, pad, mode='constant', value=0",
    attributes={"pad": "padding"},
    variant=variants.padding,
    onnx=("Pad",),
    modules=each(nn, "ZeroPad{}d", "ConstantPad{}d"),
    functions=(F.pad,),
)
row(
    "pad_from_inside",
    traits.MOVE,
    "input, pad, mode='constant', value=0",
    attributes={"pad": "padding"},
    onnx=("Pad",),
    modules=each(nn, "ReflectionPad{}d", "ReplicationPad{}d"),
)
row(
    "identity",
    traits.IDENTITY,
    "input, memory_format=None",
    onnx=("Identity",),
    modules=(nn.Identity,),
    functions=(torch.clone, torch.detach),
    methods=("contiguous", "clone", "detach"),
)
row(
    "to_device",
    traits.RESHAPE,
    "input, device=None, non_blocking=False, memory_format=None",
    methods=("cpu", "cuda"),
)
row(
    "dropout",
    traits.IDENTITY,
    "input, p=0.5, training=True, inplace=False",
    modules=(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    functions=(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d),
)
# Not traced, as dropout: they read their training flag when they run. torchvision's and timm's.
DROP_PATH = row(
    "drop_path",
    traits.RESHAPE,
    "input",
    modules=(nn.AlphaDropout, nn.FeatureAlphaDropout, TrainingOnly),
    type_names=("StochasticDepth", "DropPath", "DropBlock2d", "DropBlock3d"),
)
row(
    "flatten",
    traits.RESHAPE,
    "input, start_dim=0, end_dim=-1",
    onnx=("Flatten",),
    modules=(nn.Flatten,),
    functions=(torch.flatten,),
    methods=("flatten",),
)
row(
    "unflatten",
    traits.RESHAPE,
    "input, dim, sizes",
    attributes={"sizes": "unflattened_size"},
    modules=(nn.Unflatten,),
    methods=("unflatten",),
)
row(
    "reshape",
    traits.RESHAPE,
    "input, *sizes",
    onnx=("Reshape",),
    functions=(torch.reshape,),
    methods=("reshape", "view"),
)
row("reshape_as", traits.RESHAPE, "input, other", methods=("reshape_as", "view_as"))
row(
    "squeeze",
    traits.RESHAPE,
    "input, *dim",
    onnx=("Squeeze",),
    functions=(torch.squeeze,),
    methods=("squeeze",),
)
row(
    "unsqueeze",
    traits.RESHAPE,
    "input, dim",
    onnx=("Unsqueeze",),
    functions=(torch.unsqueeze,),
    methods=("unsqueeze",),
)
PERMUTE = row(
    "permute",
    traits.VIEW,
    "input, *dims",
    onnx=("Transpose",),
    functions=(torch.permute,),
    methods=("permute",),
)
TRANSPOSE = row(
    "transpose",
    traits.VIEW,
    "input, dim0=0, dim1=1",
    onnx=("Transpose",),
    functions=(torch.transpose, torch.swapaxes, torch.swapdims, torch.t),
    methods=("transpose", "swapaxes", "swapdims", "t"),
)
row(
    "movedim",
    traits.VIEW,
    "input, source, destination",
    functions=(torch.movedim,),
    methods=("movedim",),
)
row(
    "split",
    traits.SPLIT,
    "input, parts, dim=0",
    onnx=("Split",),
    functions=(torch.chunk, torch.split, torch.tensor_split),
    methods=("chunk", "split", "tensor_split"),
)
row("unbind", traits.SPLIT, "input, dim=0", functions=(torch.unbind,), methods=("unbind",))
INDEX = row(
    "index",
    traits.VIEW,
    "input, index",
    variant=variants.indexing,
    onnx=("Slice", "Gather"),
    functions=(operator.getitem,),
)
row(
    "select",
    traits.VIEW,
    "input, dim, index, length=None",
    functions=(torch.narrow, torch.select, torch.index_select),
    methods=("narrow", "select", "index_select"),
)
row("flip", traits.MOVE, "input, *dims", functions=(torch.flip,), methods=("flip",))
row("roll", traits.MOVE, "input, shifts, dims=()", functions=(torch.roll,), methods=("roll",))
row("expand", traits.VIEW, "input, *sizes", onnx=("Expand",), methods=("expand",))
row("expand_as", traits.VIEW, "input, other", methods=("expand_as",))
row(
    "repeat",
    traits.MOVE,
    "input, *sizes",
    onnx=("Tile",),
    functions=(torch.tile,),
    methods=("repeat", "tile"),
)
row(
    "repeat_interleave",
    traits.MOVE,
    "input, repeats, dim=None, output_size=None",
    functions=(torch.repeat_interleave,),
    methods=("repeat_interleave",),
)
row(
    "pixel_shuffle",
    traits.MOVE,
    "input, upscale_factor",
    onnx=("DepthToSpace",),
    modules=(nn.PixelShuffle,),
    functions=(F.pixel_shuffle,),
)
row(
    "pixel_unshuffle",
    traits.MOVE,
    "input, downscale_factor",
    onnx=("SpaceToDepth",),
    modules=(nn.PixelUnshuffle,),
    functions=(F.pixel_unshuffle,),
)
row(
    "channel_shuffle",
    traits.MOVE,
    "input, groups",
    modules=(nn.ChannelShuffle,),
    functions=(F.channel_shuffle,),
)
