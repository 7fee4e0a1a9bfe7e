"""The table of operations, continued: resizing, and operations that move values.

The other rows, and all that is said about rows, are in
:mod:`~edgeailite.quantization.graph.operations`.
"""

from __future__ import annotations

import operator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from edgeailite.quantization.graph import casts, traits, variants
from edgeailite.quantization.graph.modes import TrainingOnly
from edgeailite.quantization.graph.registry import each
from edgeailite.quantization.graph.registry import register_operation as row

# ---- resizing -----------------------------------------------------------------------------------

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
row(
    "resize_cubic",
    replace(traits.AVERAGE, averages=False, may_overwrite=True, keeps_sign=False),
    _RESIZE_PARAMETERS,
)
row("resize_nearest", traits.MOVE_IN_CHANNEL, _RESIZE_PARAMETERS, onnx=("Resize",))

# ---- operations that move values ----------------------------------------------------------------

MAX_POOL = MAX_POOL = row(
    "max_pool",
    traits.MOVE_IN_CHANNEL,
    "input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False",
    variant=variants.values_with_places,
    onnx=("MaxPool",),
    modules=each(nn, "MaxPool{}d"),
    functions=each(F, "_max_pool{}d", "max_pool{}d_with_indices") + each(torch, "max_pool{}d"),
)
row(
    "adaptive_max_pool",
    traits.MOVE_IN_CHANNEL,
    "input, output_size, return_indices=False",
    variant=variants.values_with_places,
    modules=each(nn, "AdaptiveMaxPool{}d"),
    functions=each(F, "_adaptive_max_pool{}d", "adaptive_max_pool{}d_with_indices"),
)
row(
    "extreme",
    traits.MOVE,
    "input, dim=(), keepdim=False",
    onnx=("ReduceMax", "ReduceMin"),
    functions=(torch.amax, torch.amin),
    methods=("amax", "amin"),
)
row(
    "max",  # of all values; along an axis, or of two tensors, it is another row
    traits.MOVE,
    "input, other=None, keepdim=False",
    aliases={"dim": "other", "axis": "other"},
    variant=variants.maxima,
    onnx=("ReduceMax", "ReduceMin"),
    functions=(torch.max, torch.min),
    methods=("max", "min"),
)
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
PAD_WITH_VALUE = row(
    "pad_with_value",
    replace(traits.ARITHMETIC, reads_one=True),
    "input, pad, mode='constant', value=0",
    attributes={"pad": "padding"},
)
PAD_BELOW = row(  # with minus infinity, in front of a max pool, which takes no such value
    "pad_below",
    traits.MOVE,
    "input, pad, mode='constant', value=0",
    attributes={"pad": "padding"},
    onnx=("Pad",),
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
TO_TYPE = row(  # of what has this type: no operation
    "to_type",
    traits.IDENTITY,
    variant=casts.cast,
    methods=("to", "type_as", *casts.TYPES),
)
row(
    "dropout",
    traits.IDENTITY,
    "input, p=0.5, training=True, inplace=False",
    variant=variants.dropping_in_training,
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
    aliases={"shape": "sizes", "size": "sizes", "dtype": "sizes"},
    variant=variants.sizes_only,
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
    aliases={"axis0": "dim0", "axis1": "dim1"},
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
    aliases=dict.fromkeys(
        (
            "chunks",
            "indices",
            "sections",
            "split_size",
            "split_size_or_sections",
            "tensor_indices_or_sections",
        ),
        "parts",
    ),
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
    aliases={"start": "index"},
    functions=(torch.narrow, torch.select, torch.index_select),
    methods=("narrow", "select", "index_select"),
)
row("flip", traits.MOVE, "input, *dims", functions=(torch.flip,), methods=("flip",))
row("roll", traits.MOVE, "input, shifts, dims=()", functions=(torch.roll,), methods=("roll",))
row(
    "expand",
    traits.VIEW,
    "input, *sizes",
    aliases={"size": "sizes"},
    onnx=("Expand",),
    methods=("expand",),
)
row("expand_as", traits.VIEW, "input, other", methods=("expand_as",))
row(
    "repeat",
    traits.MOVE,
    "input, *sizes",
    aliases={"dims": "sizes", "repeats": "sizes"},
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
row(
    "unfold",
    traits.MOVE,
    "input, kernel_size, dilation=1, padding=0, stride=1",
    modules=(nn.Unfold,),
    functions=(F.unfold,),
)
row("unfold_axis", traits.VIEW, "input, dimension, size, step", methods=("unfold",))
