"""Calls of every row of the table with arguments that are not the defaults.

A sample computes on ``y``, the quantized output of a convolution, of shape ``(2, 8, 6, 6)``, or
with another number of axes where its name ends with ``1d`` or ``3d``. Samples of one number of axes
are the branches of one network, a :class:`Bank`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeailite.quantization.graph.norm_along import NormAlong
from tests.quantization.helpers import randomize_batch_norms

IMAGE_SIZES = {1: (6,), 2: (6, 6), 3: (4, 4, 4)}


@dataclass(frozen=True)
class Sample:
    """One call.

    Attributes:
        compute: Called with `y`, then with the module or the parameters.
        module: Makes the module of the call, or None.
        shapes: Shapes of parameters.
        refused: Text in the reason of the report; empty: the call computes integers.
        is_exported: False: torch's exporter has no form of it.
        steps: How far ONNX Runtime may be off, where libraries weight with different roundings.
        on_tinpu: False: the NPU's wrapper refuses it with an error.
    """

    compute: Callable[..., Tensor]
    module: Callable[[], nn.Module] | None = None
    shapes: tuple[tuple[int, ...], ...] = ()
    refused: str = ""
    is_exported: bool = True
    steps: int = 0
    on_tinpu: bool = True


def function(compute, *shapes, **options):
    return Sample(compute, shapes=shapes, **options)


def module(make, compute=None, **options):
    return Sample(compute or (lambda y, part: part(y)), make, **options)


class Branch(nn.Module):
    def __init__(self, sample):
        super().__init__()
        self.compute = sample.compute
        self.part = sample.module() if sample.module else None
        made = [nn.Parameter(torch.randn(shape) * 0.3) for shape in sample.shapes]
        self.values = nn.ParameterList(made)

    def forward(self, y):
        return self.compute(y, *([self.part] if self.part is not None else []), *self.values)


class Bank(nn.Module):
    """A convolution, and samples that read its output.

    Args:
        axes: Number of axes of the images.
        samples: By name.
        has_condition: Ask for the size of the images, which symbolic tracing cannot follow.
    """

    def __init__(self, axes, samples, has_condition=False):
        super().__init__()
        self.has_condition = has_condition
        self.stem = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes](3, 8, 1)
        self.samples = nn.ModuleDict({name: Branch(s) for name, s in samples.items()})
        randomize_batch_norms(self)

    def forward(self, x):
        if self.has_condition and x.shape[-1] > 100:
            x = x[..., :100]
        y = self.stem(x)
        return [branch(y) for branch in self.samples.values()]


def axes_of(name: str) -> int:
    return int(name[-2]) if name.endswith(("1d", "3d")) else 2


def half(y, axis):
    return y.shape[axis] // 2


KERNEL, DEEP_KERNEL = (8, 8, 3, 3), (8, 4, 3, 3)
COMPUTED = "(computed in the model) has no integer form"

LAYERS = {
    "convolution": {
        "strided": module(lambda: nn.Conv2d(8, 8, 3, (1, 2), 2, dilation=2, groups=2, bias=False)),
        "keyword": module(lambda: nn.Conv2d(8, 8, 3), lambda y, conv: conv(input=y)),
        "same": module(lambda: nn.Conv2d(8, 8, (3, 5), padding="same")),
        "valid": module(lambda: nn.Conv2d(8, 8, (3, 4), padding="valid")),
        "reflect": module(lambda: nn.Conv2d(8, 8, 3, 2, 1, padding_mode="reflect")),
        "replicate": module(lambda: nn.Conv2d(8, 8, 3, 2, (1, 0), padding_mode="replicate")),
        "circular_1d": module(lambda: nn.Conv1d(8, 8, 5, padding="same", padding_mode="circular")),
        "volume_3d": module(lambda: nn.Conv3d(8, 8, 3, (1, 2, 1), 1)),
        "function": function(
            lambda y, w, b: F.conv2d(
                input=y, weight=w, bias=b, stride=2, padding=(1, 0), dilation=(1, 2), groups=2
            ),
            DEEP_KERNEL,
            (8,),
        ),
        "function_same": function(lambda y, w: F.conv2d(y, w, padding="same"), KERNEL),
        "stride_from_shape": function(
            lambda y, w: F.conv2d(y, w, stride=half(y, 2)), KERNEL, refused=f"stride={COMPUTED}"
        ),
        "weight_computed": function(lambda y, w: F.conv2d(y, w * w), KERNEL),
        "weight_from_input": function(
            lambda y, w: F.conv2d(y, w * y.mean()),
            KERNEL,
            refused="its weight depends on the input",
            steps=1,
        ),
    },
    "transposed_convolution": {
        "options": module(
            lambda: nn.ConvTranspose2d(8, 8, 3, 2, 1, 1, groups=2, dilation=2, bias=False)
        ),
        "size_keyword": module(
            lambda: nn.ConvTranspose2d(8, 8, 3, 2, 1), lambda y, up: up(y, output_size=(12, 11))
        ),
        "size_position": module(
            lambda: nn.ConvTranspose2d(8, 8, 3, 2, 1), lambda y, up: up(y, [12, 12])
        ),
        "size_from_shape": module(
            lambda: nn.Sequential(nn.ConvTranspose2d(8, 8, 3, 2, 1)),
            lambda y, up: up[0](y, output_size=(y.shape[2] * 2, y.shape[3] * 2)),
        ),
        "size_1d": module(
            lambda: nn.ConvTranspose1d(8, 8, 3, 2, 1), lambda y, up: up(y, output_size=(12,))
        ),
        "function": function(
            lambda y, w, b: F.conv_transpose2d(y, w, b, 2, 1, (1, 0), 2, 1), DEEP_KERNEL, (8,)
        ),
    },
    "linear": {
        "without_bias": module(lambda: nn.Linear(6, 5, bias=False)),
        "function": function(lambda y, w, b: F.linear(y, bias=b, weight=w), (5, 6), (5,)),
        "bias_computed": function(lambda y, w: F.linear(y, w, w[:, 0]), (5, 6)),
        "bias_from_input": function(
            lambda y, w: F.linear(y, w, y.mean((0, 1, 2))[:5]),
            (5, 6),
            refused="its bias depends on the input",
            steps=1,
        ),
    },
    "batch_norm": {
        "folded": module(
            lambda: nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, 0.5, None, False))
        ),
        "alone": module(lambda: nn.BatchNorm2d(8, eps=0.5)),
        "no_statistics": module(
            lambda: nn.BatchNorm2d(8, track_running_stats=False),
            refused="track_running_stats=False",
        ),
        "folded_no_statistics": module(
            lambda: nn.Sequential(
                nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU()
            ),
            refused="track_running_stats=False",
        ),
    },
}

ACTIVATIONS = {
    "relu": {
        "in_place": module(lambda: nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(inplace=True))),
        "keyword": module(lambda: nn.ReLU(), lambda y, relu: relu(input=y)),
        "function": function(lambda y: F.relu(y + y.flip(1), inplace=True)),
    },
    "prelu": {
        "module": module(lambda: nn.PReLU(8, 0.4)),
        "keywords": function(lambda y, p: torch.prelu(input=y, weight=p), (8,)),
    },
    "relu6": {"in_place": module(lambda: nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU6(True)))},
    "hardtanh": {
        "bounds": module(lambda: nn.Sequential(nn.Conv2d(8, 8, 1), nn.Hardtanh(-0.5, 0.3, True))),
        "lower_above_zero": function(lambda y: F.hardtanh(y, min_val=0.2, max_val=0.7)),
    },
    "clamp": {
        "both": function(lambda y: torch.clamp(y, -0.3, max=0.4)),
        "lower": function(lambda y: y.clamp(min=-0.3)),
        "upper": function(lambda y: y.clamp(max=0.3)),
        "swapped": function(lambda y: y.clamp(0.5, -0.5), refused="its bounds are not two numbers"),
        "tensors": function(
            lambda y, low: torch.clip(y, low, low + 1),
            (8, 1, 1),
            refused="its bounds are not two numbers",
        ),
    },
}

ARITHMETIC = {
    "add": {
        "keywords": function(lambda y: torch.add(other=y.flip(1), input=y, alpha=1)),
        "alpha": function(lambda y: torch.add(y, y.flip(1), alpha=2), refused="alpha=2"),
        "number": function(lambda y: y + 0.5),
    },
    "maximum": {
        "keyword": function(lambda y: torch.maximum(y, other=y.flip(1))),
        "constant": function(lambda y, w: y.minimum(w), (8, 6, 6)),
    },
    "sub": {
        "keywords": function(lambda y: torch.sub(other=y.flip(1), input=y)),
        "alpha": function(lambda y: y.sub(y.flip(1), alpha=0.5), refused="alpha=0.5"),
    },
    "mul": {
        "numpy_names": function(lambda y: torch.mul(x1=y, x2=y.flip(1))),
        "parameter": function(lambda y, p: y * p, (8, 1, 1)),
    },
    "div": {
        "tensors": function(lambda y: y / (y * y + 1)),
        "keywords": function(lambda y: torch.divide(other=y * y + 1, input=y)),
        "parameter": function(lambda y, p: y / (p + 2), (8, 1, 1)),
        "of_parameter": function(lambda y, p: p / (y * y + 1), (8, 1, 1)),
        "rounding": function(
            lambda y: torch.div(y + 0.013, 2**-5, rounding_mode="floor"),
            refused="rounding_mode='floor'",
        ),
    },
    "floor_div_or_pow": {
        "floor": function(lambda y: (y + 0.013) // 2**-5),
        "exponent": function(lambda y: torch.pow(y, exponent=2)),
        "tensors": function(
            lambda y, p: (y * y + 1) ** p, (8, 1, 1), refused="the target has no integer form"
        ),
    },
    "matmul": {
        "keyword": function(lambda y: torch.matmul(y, other=y.flip(1).transpose(2, 3))),
        "mat2": function(
            lambda y: torch.bmm(input=y.flatten(0, 1), mat2=y.flatten(0, 1).transpose(1, 2))
        ),
    },
    "einsum": {
        "two": function(lambda y: torch.einsum("bchw,bcwk->bchk", y, y.flip(1))),
        "ellipsis": function(lambda y: torch.einsum("...ij,...jk->...ik", [y, y.flip(1)])),
        "one": function(lambda y: torch.einsum("bchw->bhcw", y), refused="it has 1 operands"),
        "three": function(
            lambda y: torch.einsum("bchw,bcwk,bckl->bchl", y, y, y), refused="it has 3 operands"
        ),
        "lists": function(
            lambda y: torch.einsum(y, [0, 1, 2, 3], y, [0, 1, 3, 4], [0, 1, 2, 4]),
            refused="its equation is no text",
        ),
    },
    "attention": {
        "mask": function(
            lambda y, p: F.scaled_dot_product_attention(y, y, y.flip(1), attn_mask=p, scale=0.5),
            (6, 6),
        ),
        "causal": function(
            lambda y: F.scaled_dot_product_attention(query=y, key=y, value=y, is_causal=True)
        ),
        "groups": function(
            lambda y: F.scaled_dot_product_attention(y, y[:, :2], y[:, 1:3], enable_gqa=True)
        ),
        "dropout": function(
            lambda y: F.scaled_dot_product_attention(y, y, y, dropout_p=1e-30),
            refused="it drops weights in evaluation",
        ),
    },
    "masked_fill": {
        "keyword": function(lambda y, p: y.masked_fill(mask=p > 0, value=-1e4).softmax(-1), (6, 6)),
        "zero": function(
            lambda y, p: y.masked_fill(p > 0, 0.0).softmax(-1),
            (6, 6),
            refused="integers hide values by a constant mask",
        ),
        "from the input": function(
            lambda y: torch.masked_fill(y, y > 1e3, -torch.inf).softmax(-1),
            refused="integers hide values by a constant mask",
        ),
    },
    "addcmul": {
        "value": function(lambda y, p: y.addcmul(y.flip(1), p, value=-0.5), (8, 1, 1)),
        "keywords": function(
            lambda y, p: torch.addcmul(p, tensor1=y, tensor2=y.flip(2)), (8, 1, 1)
        ),
    },
    "addcdiv": {
        "value": function(lambda y: torch.addcdiv(y, y.flip(1), y.abs() + 1, value=2)),
        "keywords": function(
            lambda y, p: torch.addcdiv(input=y, tensor1=y, tensor2=p.abs() + 1), (8, 1, 1)
        ),
    },
    "slice_scatter": {
        "from": function(lambda y: torch.slice_scatter(y, y[:, 1:].flip(1), 1, start=1)),
        "keywords": function(
            lambda y: y.slice_scatter(src=y[..., 1:-2].sigmoid(), dim=-1, start=1, end=4, step=1)
        ),
        "all": function(lambda y: torch.slice_scatter(y, y.flip(1))),
        "step": function(
            lambda y: torch.slice_scatter(y, y[:, :4], 1, step=2), refused="every n-th place"
        ),
    },
    "select_scatter": {
        "first": function(lambda y: torch.select_scatter(y, y[:, 0] + y[:, 1], 1, 0)),
        "last": function(lambda y: y.select_scatter(src=y[..., 0].tanh(), dim=-1, index=-1)),
    },
    "where": {
        "number": function(lambda y, p: torch.where(p > 0, y, -1e9).softmax(-1), (6, 6)),
        "keyword": function(
            lambda y, p: torch.where(p > 0, input=y, other=-2.0),
            (6, 6),
            refused="integers hide values by a constant mask",
        ),
    },
    "cat": {
        "last": function(lambda y: torch.cat([y, y.flip(1)], dim=-1)),
        "axis": function(lambda y: torch.concatenate([y, y], axis=2)),
        "keyword": function(lambda y: torch.cat(tensors=(y, y), dim=1)),
        "batch": function(lambda y: torch.concat((y, y.flip(1)))),
    },
    "stack": {
        "last": function(lambda y: torch.stack([y, y.flip(1)], dim=-1)),
        "axis": function(lambda y: torch.stack((y, y), axis=2)),
    },
}

FUNCTIONS = {
    "pointwise": {
        "module": module(lambda: nn.ELU(0.5)),
        "keyword": function(lambda y: F.gelu(y, approximate="tanh")),
        "numbers": function(lambda y: F.leaky_relu(y, 0.2) / 4),
        "size": function(lambda y: y * y.shape[1] ** -0.5),
        "tensors": function(lambda y, p: F.threshold(y, 0.1, 0.0) * p, (8, 1, 1)),
    },
    "softmax": {
        "module": module(lambda: nn.Softmax(dim=1)),
        "keywords": function(lambda y: torch.softmax(input=y, dim=-1)),
        "dtype": function(lambda y: y.softmax(2, dtype=torch.float32)),
    },
    "functional_softmax": {
        "positions": function(lambda y: F.softmax(y, 1, 4, torch.float32)),
        "keywords": function(lambda y: F.softmax(input=y, dim=-1, _stacklevel=4, dtype=None)),
    },
    "layer_norm": {
        "module": module(lambda: nn.LayerNorm((6, 6), eps=1e-3)),
        "without": module(lambda: nn.LayerNorm(6, elementwise_affine=False)),
        "keywords": function(
            lambda y, w, b: F.layer_norm(
                input=y, normalized_shape=(6, 6), weight=w, bias=b, eps=1e-2
            ),
            (6, 6),
            (6, 6),
        ),
        "computed": function(
            lambda y: F.layer_norm(y, (6, 6), y.mean((0, 1))), refused="weight=(computed in"
        ),
    },
    "rms_norm": {
        "module": module(lambda: nn.RMSNorm((6, 6), eps=1e-3)),
        "without": module(lambda: nn.RMSNorm(6, elementwise_affine=False)),
        "keywords": function(
            lambda y, w: F.rms_norm(input=y, normalized_shape=(6, 6), weight=w, eps=1e-2), (6, 6)
        ),
        "torch": function(lambda y, w: torch.rms_norm(y, (6,), w), (6,)),
    },
    "group_norm": {
        "module": module(lambda: nn.GroupNorm(4, 8, eps=1e-3)),
        "without": module(lambda: nn.GroupNorm(1, 8, affine=False)),
        "keywords": function(
            lambda y, w, b: F.group_norm(input=y, num_groups=2, weight=w, bias=b, eps=1e-2),
            (8,),
            (8,),
        ),
        "two_axes": function(lambda y: F.group_norm(y.mean((2, 3)), 2)),
        "module_1d": module(lambda: nn.GroupNorm(2, 8)),
    },
    "instance_norm": {
        "module": module(lambda: nn.InstanceNorm2d(8, eps=1e-3, affine=True)),
        "without": module(lambda: nn.InstanceNorm2d(8)),
        "tracking": module(
            lambda: nn.InstanceNorm2d(8, track_running_stats=True), refused="running_mean"
        ),
        "statistics": function(
            lambda y, m, v: F.instance_norm(y, m.detach(), v.detach() ** 2, use_input_stats=False),
            (8,),
            (8,),
            refused="running_mean",
        ),
        "keywords": function(
            lambda y, w, b: F.instance_norm(y, weight=w, bias=b, momentum=0.5, eps=1e-2), (8,), (8,)
        ),
        "module_1d": module(lambda: nn.InstanceNorm1d(8, affine=True)),
        "function_3d": function(lambda y: F.instance_norm(y)),
    },
    "normalize": {
        "channels": function(lambda y: F.normalize(y)),
        "keywords": function(lambda y: F.normalize(input=y, p=2, dim=-1, eps=0.5)),
        "order": function(lambda y: F.normalize(y, p=1.0), refused="p=1.0"),
    },
    "vector_norm": {
        "method": function(lambda y: y.norm(dim=1, keepdim=True)),
        "positions": function(lambda y: y.norm(2, (2, 3), True)),
        "linalg": function(lambda y: torch.linalg.vector_norm(y, dim=[1, -1], keepdim=True)),
        "keywords": function(
            lambda y: torch.linalg.norm(y, ord=2, dim=1, dtype=torch.float32, keepdim=True)
        ),
        "frobenius": function(lambda y: torch.linalg.norm(y, dim=(2, 3), keepdim=True)),
        "order": function(lambda y: y.norm(1, 1), refused="p=1"),
        "largest": function(lambda y: torch.linalg.vector_norm(y, math.inf, 1), refused="p=inf"),
        "all": function(lambda y: y.norm(), refused="dim=None"),
        "float64": function(lambda y: y.norm(dim=1, dtype=torch.float64), refused="float64"),
    },
    "norm_along": {
        "channels": module(
            lambda: NormAlong((1,), 1e-3),
            lambda y, part, w, b: part(y, w, bias=b),
            shapes=((8, 1, 1), (8, 1, 1)),
        ),
        "not_centered": module(lambda: NormAlong((2, 3), 1e-3, centered=False)),
    },
    "norm": {
        "positions": function(lambda y: torch.norm(y, 2, (2, 3), True)),
        "keywords": function(lambda y: torch.norm(input=y, p=2, dim=1, dtype=torch.float32)),
    },
}

LOGARITHMS = {
    "log_softmax": {
        "function": function(lambda y: F.log_softmax(y, 1), refused="log_softmax has no integer"),
    },
}

WINDOWS = {
    "fold": {
        "options": function(
            lambda y: F.fold(F.unfold(y, (3, 2), 1, 1, 2), (6, 6), (3, 2), 1, 1, 2)
        ),
        "module": module(
            lambda: nn.Fold((7, 6), 2, dilation=(1, 2), padding=(1, 0)),
            lambda y, part: part(y.relu().reshape(y.shape[0], 8, 36)[..., :32]),
        ),
        "from_shape": function(
            lambda y: F.fold(F.unfold(y, 2), (y.shape[2], y.shape[3]), kernel_size=2)
        ),
        "kernel_computed": function(
            lambda y: F.fold(y.flatten(2)[..., :16], (6, 6), half(y, 1) // 2, 2),
            refused=f"kernel_size={COMPUTED}",
        ),
    },
}

AVERAGES = {
    "avg_pool": {
        "ceil": module(lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True)),
        "ceil_inside": module(lambda: nn.AvgPool2d(2, ceil_mode=True)),
        "not_counted": module(lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
        "ceil_not_counted": module(lambda: nn.AvgPool2d(3, 2, 1, True, False)),
        "divisor": module(lambda: nn.AvgPool2d(2, divisor_override=3)),
        "all": module(lambda: nn.AvgPool2d((3, 2), (2, 1), (1, 0), True, False, 5)),
        "keywords": function(
            lambda y: F.avg_pool2d(input=y, kernel_size=3, stride=1, padding=1, ceil_mode=True)
        ),
        "ceil_1d": module(lambda: nn.AvgPool1d(3, 2, 1, True, False)),
        "all_3d": module(lambda: nn.AvgPool3d(2, 2, 1, True, False, 3)),
        "image": function(lambda y: F.avg_pool2d(y, y.shape[2:])),
        "image_by_size": function(lambda y: F.avg_pool2d(y, (y.size(2), y.size(-1)))),
        "half_image": function(lambda y: F.avg_pool2d(y, half(y, 3))),
    },
    "adaptive_avg_pool": {
        "none": module(lambda: nn.AdaptiveAvgPool2d((None, 2))),
        "list": function(lambda y: F.adaptive_avg_pool2d(y, [1, 1])),
        "uneven": module(lambda: nn.AdaptiveAvgPool2d((4, 3)), on_tinpu=False),
        "half": function(lambda y: F.adaptive_avg_pool2d(y, (half(y, 2), 1))),
        "line_1d": module(lambda: nn.AdaptiveAvgPool1d(3)),
        "volume_3d": module(lambda: nn.AdaptiveAvgPool3d((1, None, 2))),
    },
    "mean": {
        "axis": function(lambda y: y.mean(axis=(2, 3))),
        "all": function(lambda y: y.mean()),
        "keepdim": function(lambda y: torch.mean(y, (-1, -2), True)),
        "keepdims": function(lambda y: torch.mean(y, dim=[3], keepdims=True)),
        "channels": function(lambda y: y.mean(1)),
        "batch": function(lambda y: y.mean(0)),
        "dim_computed": function(lambda y: y.mean(y.dim() - 1)),
        "float32": function(lambda y: y.mean((2, 3), dtype=torch.float32)),
        "float64": function(
            lambda y: y.mean((2, 3), dtype=torch.float64), refused="dtype=torch.float64"
        ),
    },
    "sum": {
        "axis": function(lambda y: y.sum(axis=(2, 3))),
        "all": function(lambda y: y.sum()),
        "keepdim": function(lambda y: torch.sum(y, (-1, -2), True)),
        "keepdims": function(lambda y: torch.sum(y, dim=[3], keepdims=True)),
        "channels": function(lambda y: y.reshape(y.shape[0], 2, 4, 6, 6).sum(1)),
        "batch": function(lambda y: y.sum(0)),
        "dim_computed": function(lambda y: y.sum(y.dim() - 1)),
        "float32": function(lambda y: y.sum((2, 3), dtype=torch.float32)),
        "float64": function(
            lambda y: y.sum((2, 3), dtype=torch.float64), refused="dtype=torch.float64"
        ),
    },
    "resize": {
        "corners": module(lambda: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)),
        "size": function(
            lambda y: F.interpolate(y, size=(12, 9), mode="bilinear", align_corners=False), steps=1
        ),
        "size_from_shape": function(
            lambda y: F.interpolate(y, (y.shape[2] * 2, y.shape[3] * 2), mode="bilinear")
        ),
        "factors": function(
            lambda y: F.interpolate(y, scale_factor=[2.0, 1.5], mode="bilinear"), steps=1
        ),
        "recomputed": function(
            lambda y: F.interpolate(
                y, scale_factor=1.7, mode="bilinear", recompute_scale_factor=True
            ),
            steps=1,
        ),
        "antialias": function(
            lambda y: F.interpolate(y, size=(3, 3), mode="bilinear", antialias=True), steps=1
        ),
        "area": function(lambda y: F.interpolate(y, size=(3, 2), mode="area")),
        "linear_1d": function(lambda y: F.interpolate(y, scale_factor=2, mode="linear")),
        "trilinear_3d": module(lambda: nn.Upsample(scale_factor=2, mode="trilinear")),
    },
    "resize_cubic": {
        "plain": function(lambda y: F.interpolate(F.relu(y), scale_factor=2, mode="bicubic")),
        "all": function(
            lambda y: F.interpolate(y, (5, 3), None, "bicubic", False, None, True), steps=1
        ),
        "recomputed": function(
            lambda y: F.interpolate(y, None, 1.5, "bicubic", recompute_scale_factor=True), steps=1
        ),
    },
}

MOVES = {
    "max_pool": {
        "dilated": module(lambda: nn.MaxPool2d(2, 1, dilation=2)),
        "ceil": module(lambda: nn.MaxPool2d((3, 2), (2, 1), (1, 1), ceil_mode=True)),
        "positions": function(lambda y: torch.max_pool2d(y, 3, 2, 1, 1, True)),
        "image": function(lambda y: F.max_pool2d(y, y.shape[2:])),
        "indices": module(
            lambda: nn.MaxPool2d(2, return_indices=True),
            lambda y, pool: pool(y)[0],
        ),
        "function_indices": function(lambda y: F.max_pool2d(y, 2, return_indices=True)[0]),
        "ceil_1d": module(lambda: nn.MaxPool1d(3, 2, 1, ceil_mode=True)),
        "dilated_3d": module(lambda: nn.MaxPool3d(2, 1, dilation=2)),
    },
    "adaptive_max_pool": {
        "none": module(lambda: nn.AdaptiveMaxPool2d((None, 2))),
        "indices": function(
            lambda y: F.adaptive_max_pool2d(y, 2, return_indices=True)[0],
        ),
    },
    "extreme": {
        "all": function(lambda y: y.amax()),
        "keepdim": function(lambda y: y.amin((2, 3), keepdim=True)),
        "axis": function(lambda y: torch.amax(y, axis=-3)),
    },
    "resize_nearest": {
        "factor": module(lambda: nn.Upsample(scale_factor=(2, 3))),
        "size": function(lambda y: F.interpolate(y, (9, 10))),
        "exact": function(lambda y: F.interpolate(y, size=(9, 10), mode="nearest-exact")),
        "recomputed": function(
            lambda y: F.interpolate(y, scale_factor=1.7, recompute_scale_factor=True)
        ),
    },
    "max": {
        "all": function(lambda y: y.max() - torch.min(y)),
        "axis": function(lambda y: torch.max(y, axis=1, keepdim=True)[0]),
        "method": function(lambda y: y.min(-1).values),
        "two": function(lambda y: torch.max(y, y.flip(1)) + y.min(other=y.tanh())),
    },
    "unfold": {
        "options": function(lambda y: F.unfold(y, (3, 2), (1, 2), (2, 1), stride=2)),
        "module": module(lambda: nn.Unfold(2, padding=1)),
    },
    "unfold_axis": {
        "twice": function(lambda y: y.unfold(2, 3, 2).unfold(3, 3, 3)),
        "keywords": function(lambda y: y.relu().unfold(dimension=-1, size=2, step=3)),
    },
    "pad": {
        "negative": function(lambda y: F.pad(y, (-1, 0, 1, -1))),
        "channels": function(lambda y: F.pad(input=y, pad=[1, 1, 0, 0, 2, 2], value=0.0)),
        "from_shape": function(lambda y: F.pad(y, (0, half(y, 3)))),
        "module": module(lambda: nn.ZeroPad2d((1, -1, 2, 0))),
        "value_computed": function(
            lambda y: F.pad(y, (1, 1), "constant", y.shape[1] / 10), refused=f"value={COMPUTED}"
        ),
    },
    "pad_with_value": {
        "number": function(lambda y: F.pad(y, (1, 1), value=0.5)),
        "keywords": function(lambda y: F.pad(input=y, pad=(0, 1), mode="constant", value=-1)),
        "module": module(lambda: nn.ConstantPad2d((1, 0, 2, -1), 0.7)),
        "lowest": function(lambda y: F.pad(y, (1, 1), value=-torch.inf), refused="a mask"),
    },
    "pad_below": {
        "same": function(lambda y: F.max_pool2d(F.pad(y, (0, 1, 0, 1), value=-torch.inf), 3, 2)),
        "module": module(
            lambda: nn.Sequential(nn.ConstantPad2d((1, 0, 0, 1), -torch.inf), nn.MaxPool2d(2))
        ),
        "keywords": function(
            lambda y: F.max_pool2d(F.pad(input=y, pad=(1, 1), mode="constant", value=-torch.inf), 2)
        ),
    },
    "pad_from_inside": {
        "reflect": function(lambda y: F.pad(y, (1, 2, 2, 1), mode="reflect")),
        "circular": function(lambda y: F.pad(y, (1, 2, 2, 1), "circular")),
        "cropped": function(lambda y: F.pad(y, (-1, 1, 0, -1), "replicate", None)),
        "module_3d": module(lambda: nn.ReplicationPad3d(1)),
    },
    "identity": {"format": function(lambda y: y.clone(memory_format=torch.channels_last))},
    "to_device": {
        "cpu": function(lambda y: y.cpu(memory_format=torch.preserve_format)),
        "positions": function(lambda y: y.to("cpu", torch.float32, False, True)),
        "keywords": function(
            lambda y, p: y.to(device=p.device, dtype=p.dtype, non_blocking=True, copy=True), (1,)
        ),
        "device": function(lambda y: y.to(y.device)),
    },
    "to_type": {
        "method": function(lambda y: y.float() + y.flip(1).to(y.dtype)),
        "dtype": function(
            lambda y: y.to(dtype=torch.float32, non_blocking=True, copy=True).flip(1)
        ),
        "other": function(lambda y, p: y.to(tensor=p) + y.flip(1).type_as(other=p), (1,)),
        "float64": function(lambda y: y.double().float(), refused="torch.float64"),
        "half": function(lambda y: y.to(torch.float16).to(y.dtype), refused="torch.float16"),
    },
    "dropout": {
        "module": module(lambda: nn.Dropout2d(0.3, inplace=True)),
        "off": function(lambda y: F.dropout(y, 0.4, False, True)),
    },
    "drop_path": {"module": module(lambda: nn.AlphaDropout(0.3))},
    "flatten": {
        "last": function(lambda y: y.flatten(start_dim=-2)),
        "middle": module(lambda: nn.Flatten(1, 2)),
    },
    "unflatten": {
        "keywords": function(lambda y: y.unflatten(dim=1, sizes=(2, -1))),
        "module": module(lambda: nn.Unflatten(-3, (4, 2))),
    },
    "reshape": {
        "keyword": function(lambda y: torch.reshape(y, shape=(2, -1))),
        "from_shape": function(lambda y: y.reshape(y.shape[0], -1, 4)),
        "size": function(lambda y: y.view(size=(y.size(0), 8, -1))),
        "bits": function(
            lambda y: y.view(dtype=torch.int32).float(),
            refused="no integer form",
            is_exported=False,
        ),
    },
    "reshape_as": {"keyword": function(lambda y: y.reshape_as(other=y.flip(1).flatten(1)))},
    "squeeze": {
        "keyword": function(lambda y: y[:, :1].squeeze(dim=1)),
        "several": function(lambda y: y[:, :1, :1].squeeze((1, 2))),
        "all": function(lambda y: torch.squeeze(y[:, :1])),
        "longer": function(lambda y: y.squeeze(-1)),
    },
    "unsqueeze": {"keyword": function(lambda y: torch.unsqueeze(y, dim=-1))},
    "permute": {
        "keyword": function(lambda y: torch.permute(y, dims=(0, -1, 1, 2))),
        "list": function(lambda y: y.permute([0, 2, 3, 1])),
    },
    "transpose": {
        "keywords": function(lambda y: y.transpose(dim1=1, dim0=-1)),
        "axes": function(lambda y: torch.swapaxes(y, axis0=1, axis1=2)),
        "matrix": function(lambda y: y.flatten(1).t()),
    },
    "movedim": {
        "several": function(lambda y: y.movedim((1, 2), (2, 1))),
        "keywords": function(lambda y: torch.movedim(y, source=1, destination=-1)),
    },
    "split": {
        "chunks": function(lambda y: y.chunk(chunks=3, dim=1)[2]),
        "sizes": function(lambda y: torch.split(y, split_size_or_sections=[3, 5], dim=-3)[1]),
        "size": function(lambda y: y.split(split_size=3, dim=1)[2]),
        "indices": function(lambda y: y.tensor_split(indices=(2, 5), dim=-3)[2]),
        "from_shape": function(lambda y: torch.split(y, half(y, 1), 1)[0]),
    },
    "unbind": {"keyword": function(lambda y: y.unbind(dim=1)[3])},
    "index": {
        "negative": function(lambda y: y[:, -1, None, ::2]),
        "list": function(lambda y: y[:, [3, 1, 0]]),
        "mask": function(lambda y: y[:, torch.tensor([True, False] * 4)]),
        "from_shape": function(lambda y: y[..., : half(y, 3)]),
    },
    "select": {
        "keywords": function(lambda y: y.select(index=-1, dim=1)),
        "narrow": function(lambda y: torch.narrow(y, 1, start=2, length=3)),
        "several": function(lambda y: y.index_select(dim=-1, index=torch.tensor([1, 3]))),
    },
    "flip": {
        "keyword": function(lambda y: torch.flip(y, dims=(1,))),
        "several": function(lambda y: y.flip(-1, 2)),
    },
    "roll": {
        "several": function(lambda y: torch.roll(y, shifts=(1, -2), dims=(2, 3))),
        "flat": function(lambda y: y.roll(3)),
    },
    "expand": {
        "several": function(lambda y: y[:, :1].expand(-1, 4, -1, -1)),
        "keyword": function(lambda y: y[:, :1].expand(size=(2, 4, 6, 6))),
    },
    "expand_as": {"keyword": function(lambda y: y[:, :1].expand_as(other=y))},
    "repeat": {
        "keyword": function(lambda y: y.repeat(repeats=(1, 2, 1, 1))),
        "more_axes": function(lambda y: torch.tile(y, dims=(2, 1, 1, 1, 1))),
    },
    "repeat_interleave": {
        "dim": function(lambda y: y.repeat_interleave(2, dim=1)),
        "flat": function(lambda y: y.repeat_interleave(3)),
        "each": function(
            lambda y: torch.repeat_interleave(
                y, torch.tensor([1, 2, 1, 1, 1, 1]), 2, output_size=7
            ),
            is_exported=False,
        ),
    },
    "pixel_shuffle": {"module": module(lambda: nn.PixelShuffle(2))},
    "pixel_unshuffle": {"keyword": function(lambda y: F.pixel_unshuffle(y, downscale_factor=2))},
    "channel_shuffle": {"keyword": function(lambda y: F.channel_shuffle(y, groups=4))},
}

TABLES = (LAYERS, ACTIVATIONS, ARITHMETIC, FUNCTIONS, AVERAGES, WINDOWS, LOGARITHMS, MOVES)
SAMPLES = {
    f"{row}_{name}": sample
    for table in TABLES
    for row, samples in table.items()
    for name, sample in samples.items()
}
