"""The table of operations: one row for each, with its calls, its arguments and its traits.

The rows of resizing and of operations that move values are in
:mod:`~edgeailite.quantization.graph.moves`. A row is all that the engine knows about an operation,
except how a target computes it: that is a conversion rule of the target. To add an operation see
CONTRIBUTING.md.
"""

from __future__ import annotations

import operator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from edgeailite.quantization.graph import traits, variants
from edgeailite.quantization.graph.modes import is_training
from edgeailite.quantization.graph.registry import each
from edgeailite.quantization.graph.registry import register_operation as row

# ---- parts of a graph ---------------------------------------------------------------------------

INPUT = row("input", traits.NONE)
OUTPUT = row("output", traits.NONE)
UNKNOWN = row("unknown", traits.NONE)
SCALAR = row(
    "scalar",
    traits.NONE,
    variant=variants.tensor_attribute,
    functions=(is_training, *variants.SHAPE_FUNCTIONS),
    methods=variants.SHAPE_METHODS,
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
    variant=variants.fixed_options,
    modules=each(nn, "Conv{}d"),
    functions=each(F, "conv{}d"),
)
TRANSPOSED_CONVOLUTION = row(
    "transposed_convolution",
    traits.LAYER,
    "input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1, "
    "output_size=None",
    variant=variants.fixed_options,
    modules=each(nn, "ConvTranspose{}d"),
    functions=each(F, "conv_transpose{}d"),
)
LINEAR = row(
    "linear", traits.LAYER, "input, weight, bias=None", modules=(nn.Linear,), functions=(F.linear,)
)
LAYERS = (CONVOLUTION.name, TRANSPOSED_CONVOLUTION.name, LINEAR.name)
BATCH_NORM_MODULES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
BATCH_NORM = row(
    "batch_norm",
    replace(traits.NONE, may_overwrite=True),
    "input",
    variant=variants.running_statistics,
    modules=BATCH_NORM_MODULES,
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

PRELU = row(
    "prelu",
    replace(traits.NONE, reads_one=True, keeps_channels=True),
    "input, weight",
    variant=variants.known_slopes,
    modules=(nn.PReLU,),
    functions=(torch.prelu, F.prelu),
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
DIV = row(
    "div",
    replace(traits.ARITHMETIC, keeps_sign=True),
    "input, other, rounding_mode=None",
    variant=variants.quotient,
    functions=(
        *(operator.truediv, operator.itruediv),
        *(torch.div, torch.divide, torch.true_divide),
    ),
    methods=("div", "div_", "divide", "divide_", "true_divide", "true_divide_"),
)
row(
    "floor_div_or_pow",  # of two tensors: known for the report's sake, no target computes it
    traits.NONE,
    "input, other",
    aliases={"exponent": "other"},
    variant=variants.between_tensors,
    functions=(operator.floordiv, torch.floor_divide, operator.pow, torch.pow),
    methods=("floor_divide", "pow"),
)
row(
    "matmul",
    traits.ARITHMETIC,
    "input, other",
    aliases={"mat2": "other"},
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
row(
    "maximum",  # or minimum, of two tensors
    ADD.traits,
    "input, other",
    variant=variants.between_tensors,
    functions=(torch.maximum, torch.minimum),
    methods=("maximum", "minimum"),
)
CAT = row(
    "cat",
    replace(traits.ARITHMETIC, keeps_sign=True, joins_grids=True, concatenates=True),
    "tensors, dim=0",
    functions=(torch.cat, torch.concat, torch.concatenate),
)
STACK = row("stack", CAT.traits, "tensors, dim=0", functions=(torch.stack,))

# ---- written in other operations, where that is possible (opened_calls.py) -------------------

ATTENTION = row(
    "attention",
    traits.NONE,
    "query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, "
    "enable_gqa=False",
    functions=(F.scaled_dot_product_attention,),
)
MASKED_FILL = row(
    "masked_fill",
    traits.NONE,
    "input, mask, value",
    functions=(torch.masked_fill,),
    methods=("masked_fill",),
)
WHERE = row("where", traits.NONE, "condition, input=None, other=None", functions=(torch.where,))
ADDCMUL = row(
    "addcmul",
    traits.NONE,
    "input, tensor1, tensor2, value=1",
    functions=(torch.addcmul,),
    methods=("addcmul",),
)
ADDCDIV = row(
    "addcdiv",
    traits.NONE,
    "input, tensor1, tensor2, value=1",
    functions=(torch.addcdiv,),
    methods=("addcdiv",),
)

SLICE_SCATTER = row(
    "slice_scatter",
    traits.NONE,
    "input, src, dim=0, start=None, end=None, step=1",
    functions=(torch.slice_scatter,),
    methods=("slice_scatter",),
)
SELECT_SCATTER = row(
    "select_scatter",
    traits.NONE,
    "input, src, dim, index",
    functions=(torch.select_scatter,),
    methods=("select_scatter",),
)

# ---- averages -----------------------------------------------------------------------------------

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
    variant=variants.mean_of_floats,
    functions=(torch.mean,),
    methods=("mean",),
)
SUM = row(
    "sum",
    traits.AVERAGE,
    "input, dim=None, keepdim=False, dtype=None",
    variant=variants.sum_of_floats,
    functions=(torch.sum,),
    methods=("sum",),
)
row(
    "fold",
    replace(traits.ARITHMETIC, reads_one=True, keeps_sign=True),
    "input, output_size, kernel_size, dilation=1, padding=0, stride=1",
    variant=variants.few_overlaps,
    modules=(nn.Fold,),
    functions=(F.fold,),
)
