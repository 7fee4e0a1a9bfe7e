"""What kind of operation a graph node is: one table for modules, functions and tensor methods."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from edgeailite.quantization.graph.window_sums import Mean
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.modules.layer import QuantLayer
from edgeailite.quantization.modules.pact2 import NoQAct, QAct
from edgeailite.quantization.targets.tinpu.modules import FixedPointAverage


class Kind(Enum):
    """Kinds that the annotation rules tell apart."""

    INPUT = "input"
    OUTPUT = "output"
    LAYER = "layer"
    BATCH_NORM = "batch_norm"
    RELU = "relu"
    CLAMP = "clamp"
    ADD = "add"
    SUB = "sub"
    MUL = "mul"
    MATMUL = "matmul"
    CAT = "cat"
    AVERAGE = "average"
    RESIZE = "resize"
    PRESERVE = "preserve"
    PAD = "pad"
    FORCE = "force"
    FORBID = "forbid"
    QUANTIZER = "quantizer"
    SCALAR = "scalar"
    FLOAT = "float"


def is_training(module: nn.Module) -> bool:
    """Whether `module` is in training mode, as a graph asks while it runs."""
    return module.training


LAYER_MODULES = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)
LAYER_FUNCTIONS: tuple[Callable, ...] = (
    F.conv1d, F.conv2d, F.conv3d,
    F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.linear,
)  # fmt: skip
BATCH_NORM_MODULES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

_MODULES: dict[Kind, tuple[type[nn.Module], ...]] = {
    Kind.QUANTIZER: (FakeQuantize,),
    Kind.FORCE: (QAct,),
    Kind.FORBID: (NoQAct,),
    Kind.LAYER: (QuantLayer, *LAYER_MODULES),
    Kind.BATCH_NORM: BATCH_NORM_MODULES,
    Kind.CLAMP: (nn.ReLU6, nn.Hardtanh),
    Kind.RELU: (nn.ReLU,),
    Kind.AVERAGE: (
        FixedPointAverage,
        nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
        nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    ),
    Kind.RESIZE: (nn.Upsample, nn.UpsamplingBilinear2d, nn.UpsamplingNearest2d),
    Kind.PRESERVE: (
        nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
        nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
        nn.Flatten, nn.Unflatten, nn.Identity,
        nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
        nn.AlphaDropout, nn.FeatureAlphaDropout,
        nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle,
        nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d,
        nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d,
    ),
    Kind.PAD: (
        nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d,
        nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d,
    ),
}  # fmt: skip

_FUNCTIONS: dict[Kind, tuple[Callable, ...]] = {
    Kind.LAYER: LAYER_FUNCTIONS,
    Kind.RELU: (F.relu, F.relu_, torch.relu, torch.relu_),
    Kind.CLAMP: (F.relu6, F.hardtanh, F.hardtanh_, torch.clamp, torch.clip),
    Kind.ADD: (operator.add, operator.iadd, torch.add),
    Kind.SUB: (operator.sub, operator.isub, torch.sub),
    Kind.MUL: (operator.mul, operator.imul, torch.mul),
    Kind.MATMUL: (operator.matmul, torch.matmul, torch.bmm, torch.einsum),
    Kind.CAT: (torch.cat, torch.concat, torch.concatenate, torch.stack),
    Kind.AVERAGE: (
        torch.mean, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d,
        F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
    ),
    Kind.RESIZE: (F.interpolate, F.upsample),
    Kind.PRESERVE: (
        F._max_pool1d, F._max_pool2d, F._max_pool3d,  # type: ignore[attr-defined]
        F._adaptive_max_pool1d,  # type: ignore[attr-defined]
        F._adaptive_max_pool2d, F._adaptive_max_pool3d,  # type: ignore[attr-defined]
        torch.max_pool1d, torch.max_pool2d, torch.max_pool3d, torch.amax, torch.amin,
        torch.flatten, torch.reshape, torch.permute, torch.transpose,
        torch.swapaxes, torch.swapdims, torch.movedim, torch.squeeze, torch.unsqueeze, torch.t,
        torch.chunk, torch.split, torch.tensor_split, torch.unbind,
        torch.narrow, torch.select, torch.index_select, torch.flip, torch.roll, torch.tile,
        torch.repeat_interleave, torch.clone, torch.detach,
        F.dropout, F.dropout1d, F.dropout2d, F.dropout3d,
        F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle,
    ),
    Kind.PAD: (F.pad,),
    Kind.SCALAR: (is_training, getattr, len, int, operator.floordiv, math.floor, math.ceil),
}  # fmt: skip

_METHODS: dict[Kind, tuple[str, ...]] = {
    Kind.RELU: ("relu", "relu_"),
    Kind.CLAMP: ("clamp", "clamp_", "clip", "clip_"),
    Kind.ADD: ("add", "add_"),
    Kind.SUB: ("sub", "sub_"),
    Kind.MUL: ("mul", "mul_"),
    Kind.MATMUL: ("matmul", "bmm"),
    Kind.AVERAGE: ("mean",),
    Kind.PRESERVE: (
        "flatten", "reshape", "view", "permute", "transpose", "swapaxes", "swapdims", "movedim",
        "squeeze", "unsqueeze", "t", "chunk", "split", "tensor_split", "unbind", "narrow",
        "select", "index_select", "flip", "roll", "expand", "expand_as", "view_as", "reshape_as",
        "repeat", "tile", "repeat_interleave", "contiguous", "clone", "detach", "unflatten",
        "amax", "amin", "cpu", "cuda",
    ),
    Kind.SCALAR: ("size", "dim", "numel", "ndimension"),
}  # fmt: skip

# Modules that leave a whole branch out at random in training, known by name: torchvision's and
# timm's. As dropout does, they read their training flag when they run, so they are not traced.
DROPS_PATHS = ("StochasticDepth", "DropPath", "DropBlock2d", "DropBlock3d")

_KIND_OF_FUNCTION: dict[Any, Kind] = {
    f: kind for kind, functions in _FUNCTIONS.items() for f in functions
}
_KIND_OF_METHOD = {m: kind for kind, methods in _METHODS.items() for m in methods}

_ONLY_ON_TENSORS = (Kind.ADD, Kind.SUB, Kind.MUL, Kind.MATMUL)
_ALIGNED = "align_corners"


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """A call's argument, given by position or by name."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def operands(node: fx.Node) -> list[fx.Node]:
    """The values a classified node computes on; sizes that it is given are none of them."""
    inputs = node.all_input_nodes
    unary = (Kind.RESIZE, Kind.AVERAGE, Kind.PRESERVE, Kind.PAD)
    return inputs[:1] if node.meta["kind"] in unary else inputs


def product_operands(node: fx.Node) -> list[object]:
    """The operands of a sum or product, by whatever name; all that follow an equation."""
    if node.target is torch.einsum:
        return list(node.args[1:])
    return [node.args[0], argument(node, 1, "mat2" if node.target is torch.bmm else "other")]


def node_kind(node: fx.Node, module: nn.Module | None) -> Kind:
    """The kind of a node; what the table does not know is ``FLOAT``.

    Args:
        node: Node of a captured graph.
        module: The module it calls, for ``call_module`` nodes.
    """
    if node.op == "placeholder":
        return Kind.INPUT
    if node.op == "output":
        return Kind.OUTPUT
    if node.op == "call_module":
        kind = next((k for k, types in _MODULES.items() if isinstance(module, types)), Kind.FLOAT)
        if type(module).__name__ in DROPS_PATHS:
            kind = Kind.PRESERVE
    elif node.op == "call_function":
        kind = _function_kind(node)
    elif node.op == "call_method":
        kind = _KIND_OF_METHOD.get(str(node.target), Kind.FLOAT)
    else:
        return Kind.SCALAR if node.op == "get_attr" else Kind.FLOAT
    return _refined(kind, node, module)


def _function_kind(node: fx.Node) -> Kind:
    if node.target is operator.getitem:
        source = node.args[0]
        scalar = isinstance(source, fx.Node) and source.meta.get("kind") is Kind.SCALAR
        return Kind.SCALAR if scalar else Kind.PRESERVE
    return _KIND_OF_FUNCTION.get(node.target, Kind.FLOAT)


def _refined(kind: Kind, node: fx.Node, module: nn.Module | None) -> Kind:
    """What depends on the arguments: scalars in arithmetic, resize modes, a padding's value."""
    if _is_constant(kind, node):
        return Kind.SCALAR
    if kind in _ONLY_ON_TENSORS:
        factors = product_operands(node)
        known = [a.meta.get("kind") if isinstance(a, fx.Node) else Kind.SCALAR for a in factors]
        if Kind.SCALAR in known or len(known) != 2 or "alpha" in node.kwargs:
            return Kind.FLOAT
    elif kind is Kind.RESIZE:
        mode = getattr(module, "mode", None) or argument(node, 3, "mode", "nearest")
        return Kind.PRESERVE if "nearest" in str(mode) else kind
    elif kind is Kind.PAD:
        return _pad_kind(node, module)
    return kind


def _is_constant(kind: Kind, node: fx.Node) -> bool:
    """Whether an operation, no layer, only reads sizes and parameters."""
    if kind is Kind.LAYER or node.op == "call_module" or not node.all_input_nodes:
        return False
    return all(a.meta.get("kind") is Kind.SCALAR for a in node.all_input_nodes)


def _pad_kind(node: fx.Node, module: nn.Module | None) -> Kind:
    """Reflection and replication move values; a constant must be zero to lie on every grid."""
    mode = argument(node, 2, "mode", "constant") if module is None else "constant"
    value = getattr(module, "value", 0) if module is not None else argument(node, 3, "value", 0)
    if mode != "constant":
        return Kind.PRESERVE
    return Kind.PAD if value in (0, 0.0, None) else Kind.FLOAT


def global_average(node: fx.Node, module: nn.Module | None) -> bool | None:
    """Whether an average over whole images keeps its dimensions; None for any other average."""
    if isinstance(module, nn.AdaptiveAvgPool2d) or node.target is F.adaptive_avg_pool2d:
        size = module.output_size if module is not None else argument(node, 1, "output_size")
        return True if size in (1, (1, 1), [1, 1]) else None
    if module is not None or node.target not in (torch.mean, "mean"):
        return None
    dims = argument(node, 1, "dim")
    if not isinstance(dims, list | tuple) or set(dims) not in ({2, 3}, {-1, -2}):
        return None
    return bool(argument(node, 2, "keepdim", False))


def avg_pool_options(node: fx.Node) -> dict[str, Any]:
    """What a call of ``F.avg_pool2d`` gives beside its input, by name."""
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
    given = dict(zip((*names, "divisor_override"), node.args[1:], strict=False))
    return {k: v for k, v in (given | dict(node.kwargs)).items() if k != "input"}


_AVERAGE_MODULES: dict[str, Callable[..., nn.Module]] = {
    "avg_pool1d": nn.AvgPool1d, "avg_pool2d": nn.AvgPool2d, "avg_pool3d": nn.AvgPool3d,
    "adaptive_avg_pool1d": nn.AdaptiveAvgPool1d,
    "adaptive_avg_pool2d": nn.AdaptiveAvgPool2d,
    "adaptive_avg_pool3d": nn.AdaptiveAvgPool3d,
}  # fmt: skip


def average_module(node: fx.Node, module: nn.Module | None) -> nn.Module:
    """The module that computes what an average's node computes.

    Args:
        node: Of kind ``AVERAGE``.
        module: What it calls, for ``call_module`` nodes.
    """
    if module is not None:
        return module
    name = getattr(node.target, "__name__", str(node.target))
    if name == "mean":
        dims = argument(node, 1, "dim")
        dims = [dims] if isinstance(dims, int) else dims
        return Mean(dims, bool(argument(node, 2, "keepdim", False)))
    if "adaptive" in name:
        return _AVERAGE_MODULES[name](argument(node, 1, "output_size"))
    return _AVERAGE_MODULES[name](**avg_pool_options(node))


def clamp_bounds(node: fx.Node, module: nn.Module | None) -> tuple[float, float] | None:
    """``(low, high)`` of a ReLU6, Hardtanh or clamp; None where a bound is missing or a tensor."""
    if isinstance(module, nn.Hardtanh):
        return float(module.min_val), float(module.max_val)
    if node.target is F.relu6:
        return 0.0, 6.0
    names = ("min_val", "max_val") if node.target in (F.hardtanh, F.hardtanh_) else ("min", "max")
    defaults = (-1.0, 1.0) if names[0] == "min_val" else (None, None)
    bounds = [
        argument(node, i + 1, name, default)
        for i, (name, default) in enumerate(zip(names, defaults, strict=True))
    ]
    if all(isinstance(b, int | float) for b in bounds):
        return float(bounds[0]), float(bounds[1])
    return None
