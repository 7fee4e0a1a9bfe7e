"""Lines that ``fuzz_exactness.py`` grows networks of: a function for each row of the table."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from fuzz_networks import Growth, Network, Unsuitable
from torch import nn

from edgeailite.quantization.graph.pointwise import POINTWISE
from edgeailite.quantization.graph.registry import calls_of

Maker = Callable[[Growth], Any]
MAKERS: dict[str, Maker] = {}
"""By row of the table of operations; also by names of functions that have no row."""
WEIGHTS: dict[str, float] = {}


def makes(*rows: str, weight: float = 1.0) -> Callable[[Maker], Maker]:
    """Register what adds lines of these rows; `weight`: how often, besides its turn."""

    def register(maker: Maker) -> Maker:
        for row in rows:
            MAKERS[row], WEIGHTS[row] = maker, weight
        return maker

    return register


def inputs_of(rng: random.Random) -> dict[str, tuple[int, ...]]:
    """Shapes of one or two inputs, without batch."""
    size, channels = rng.choice([5, 6, 7, 8, 9, 12, 16]), rng.choice([1, 2, 3, 3, 4, 8])
    shapes: list[tuple[int, ...]] = [
        (channels, size, rng.choice([size, size, rng.randint(4, 12)])),
        (channels, rng.randint(8, 40)),
        (rng.choice([1, 2]), rng.randint(3, 5), 6, rng.randint(4, 6)),
        (rng.choice([4, 9, 16]), rng.choice([6, 8, 12])),
    ]
    first = rng.choices(shapes, weights=(8, 1, 0.5, 1))
    second = rng.sample([*shapes, first[0]], 1) if rng.random() < 0.15 else []
    return {f"x{i}": shape for i, shape in enumerate([*first, *second])}


def grow(rng: random.Random, rows: Sequence[str], num_lines: int) -> Network:
    """Grow a network.

    Args:
        rng: Decides everything.
        rows: Names of :data:`MAKERS` whose turn it is; all else is added at random.
        num_lines: Lines, at least.
    """
    growth = Growth(rng, inputs_of(rng))
    if growth.chance(0.9):
        growth.attempt(MAKERS["convolution" if len(growth.inputs["x0"]) != 2 else "linear"])
    waiting, names, weights = list(rows), list(WEIGHTS), list(WEIGHTS.values())
    for _ in count():
        turn = bool(waiting) and growth.chance(0.5)
        row = waiting.pop(0) if turn else rng.choices(names, weights)[0]
        if not growth.attempt(MAKERS[row]) and turn and growth.chance(0.8):
            waiting.append(row)  # later there may be a value that it can read
        if len(growth.lines) >= num_lines and not waiting:
            return growth.finish()
    raise AssertionError


# ---- layers -------------------------------------------------------------------------------------


@makes("convolution", weight=8)
def convolution(g: Growth) -> str:
    """Of one to three axes: strided, padded, dilated, grouped, as module or function."""
    v = g.value(3, 4, 4, 4, 5)
    channels, axes = g.shape(v)[1], len(g.shape(v)) - 2
    kernel = [min(g.one(1, 1, 3, 3, 5, 2), size) for size in g.shape(v)[2:]]
    groups = g.one(1, 1, channels, g.divisor(channels))
    outputs = groups * max(g.one(2, 4, 5, 6, 8, 12) // groups, 1)
    dilation = g.one(1, 1, 1, 2)
    stride = g.one(1, 1, 1, 2, 3)
    padding: Any = tuple(g.one(0, k // 2, k // 2, k // 2 + 1) for k in kernel)
    if g.chance(0.1) and stride == 1:
        padding = g.one("same", "valid")
    bias, size = g.chance(0.7), tuple(kernel)
    if g.chance(0.15):
        weight = g.parameter(outputs, channels // groups, *kernel, spread=0.3)
        offset = g.parameter(outputs, spread=0.3) if bias else None
        return g.add(
            f"F.conv{axes}d({v}, {weight}, {offset}, {stride}, {padding!r}, {dilation}, {groups})"
        )
    mode = g.one(*["zeros"] * 8, "reflect", "replicate", "circular")
    pads = padding if isinstance(padding, tuple) else tuple(k // 2 for k in kernel)
    if any(p >= s for p, s in zip(pads, g.shape(v)[2:], strict=True)):
        mode = "zeros"
    options = f", padding_mode={mode!r}" if mode != "zeros" else ""
    part = g.part(
        f"nn.Conv{axes}d({channels}, {outputs}, {size}, {stride}, {padding!r}, {dilation}, "
        f"{groups}, {bias}{options})"
    )
    return _after_layer(g, g.add(f"{part}({v})"), outputs, axes)


def _after_layer(g: Growth, v: str, channels: int, axes: int) -> str:
    """Batch norm and activation function behind a layer, mostly."""
    if g.chance(0.4):
        affine = g.one("", "", ", affine=False", ", eps=0.1")
        v = g.add(f"{g.part(f'nn.BatchNorm{axes}d({channels}{affine})')}({v})")
    if g.chance(0.6):
        v = MAKERS[g.one("relu", "relu", "relu", "relu6", "hardtanh", "pointwise", "clamp")](g)
    return v


@makes("transposed_convolution", weight=1)
def transposed_convolution(g: Growth) -> str:
    """Of one to three axes, with options of all kinds; sometimes the size is asked for."""
    v = g.value(3, 4, 4, 4, 5, when=lambda shape: max(shape[2:]) <= 12)
    channels, axes = g.shape(v)[1], len(g.shape(v)) - 2
    groups = g.one(1, 1, channels, g.divisor(channels))
    outputs = groups * max(g.one(2, 4, 6, 8) // groups, 1)
    kernel, stride, dilation = g.one(1, 2, 3, 4), g.one(1, 2, 2, 3), g.one(1, 1, 2)
    padding = g.number(0, dilation * (kernel - 1) // 2)
    extra = g.number(0, max(stride, dilation) - 1)
    bias = g.chance(0.7)
    if g.chance(0.2):
        weight = g.parameter(channels, outputs // groups, *([kernel] * axes), spread=0.3)
        return g.add(
            f"F.conv_transpose{axes}d({v}, {weight}, None, {stride}, {padding}, {extra}, "
            f"{groups}, {dilation})"
        )
    part = g.part(
        f"nn.ConvTranspose{axes}d({channels}, {outputs}, {kernel}, {stride}, {padding}, {extra}, "
        f"{groups}, {bias}, {dilation})"
    )
    return _after_layer(g, g.add(f"{part}({v})"), outputs, axes)


@makes("linear", weight=3)
def linear(g: Growth) -> str:
    """On the last axis; an image is sometimes flattened first."""
    v = g.value()
    if len(g.shape(v)) > 3 and g.chance(0.7):
        v = g.add(f"torch.flatten({v}, 1)")
    inputs, outputs = g.shape(v)[-1], g.one(3, 5, 8, 10)
    if g.chance(0.15):
        bias = g.parameter(outputs, spread=0.3) if g.chance(0.5) else None
        return g.add(f"F.linear({v}, {g.parameter(outputs, inputs, spread=0.3)}, {bias})")
    v = g.add(f"{g.part(f'nn.Linear({inputs}, {outputs}, {g.chance(0.7)})')}({v})")
    if g.chance(0.2) and len(g.shape(v)) == 2:
        v = g.add(f"{g.part(f'nn.BatchNorm1d({outputs})')}({v})")
    return MAKERS[g.one("relu", "pointwise")](g) if g.chance(0.4) else v


@makes("batch_norm", weight=0.3)
def batch_norm(g: Growth) -> str:
    """Behind anything."""
    v = g.value(2, 3, 4, 4, 5)
    name = {2: "BatchNorm1d", 3: "BatchNorm1d", 4: "BatchNorm2d", 5: "BatchNorm3d"}
    return g.add(f"{g.part(f'nn.{name[len(g.shape(v))]}({g.shape(v)[1]})')}({v})")


# ---- activation functions -----------------------------------------------------------------------


def _fresh(g: Growth) -> str:
    """The last value, mostly."""
    last = next(reversed(g.values))
    return last if g.chance(0.7) else g.value()


def _writable(g: Growth, v: str) -> bool:
    """True for a value that only the next line reads, so that it may be overwritten."""
    own = g.values[v].untyped_storage().data_ptr()
    if any(o.untyped_storage().data_ptr() == own for n, o in g.values.items() if n != v):
        return False  # a view, or the value itself
    return v == next(reversed(g.lines), "") and "self.m" in g.lines[v] and g.chance(0.3)


@makes("relu", weight=2)
def relu(g: Growth) -> str:
    """Module, function or method, in place where nobody else reads the value."""
    v = _fresh(g)
    if _writable(g, v):
        return g.add(g.one(f"F.relu({v}, inplace=True)", f"{v}.relu_()"))
    return g.add(g.one(f"{g.part('nn.ReLU()')}({v})", f"F.relu({v})", f"{v}.relu()"))


@makes("relu6")
def relu6(g: Growth) -> str:
    """Module or function."""
    v = _fresh(g)
    return g.add(g.one(f"{g.part('nn.ReLU6()')}({v})", f"F.relu6({v})"))


@makes("hardtanh")
def hardtanh(g: Growth) -> str:
    """With bounds around zero, or above it."""
    v, bounds = _fresh(g), g.one("-1.0, 1.0", "-0.5, 0.75", "0.0, 1.5", "-2.0, 0.3", "0.1, 0.9")
    return g.add(g.one(f"{g.part(f'nn.Hardtanh({bounds})')}({v})", f"F.hardtanh({v}, {bounds})"))


@makes("clamp")
def clamp(g: Growth) -> str:
    """One bound or two."""
    v = _fresh(g)
    bounds = g.one("-0.3, 0.4", "min=0", "min=-0.7", "max=0.6", "0.0, 1.0", "-1.7, max=2.3")
    return g.add(g.one(f"torch.clamp({v}, {bounds})", f"{v}.clip({bounds})"))


# ---- arithmetic ---------------------------------------------------------------------------------


def _pair(g: Growth) -> tuple[str, str]:
    """Two values of the same shape, or of shapes that broadcast."""
    a = g.value()
    partners = [
        name
        for name in g.values
        if name != a and _broadcast(g.shape(a), g.shape(name)) == g.shape(a)
    ]
    if partners and g.chance(0.75):
        return (a, g.one(*partners)) if g.chance(0.5) else (g.one(*partners), a)
    if g.chance(0.1):
        return a, a
    shape = g.shape(a)
    if len(shape) == 4 and g.chance(0.4):
        b = g.add(f"{g.part(f'nn.Conv2d({shape[1]}, {shape[1]}, 1)')}({a})")
    elif g.chance(0.4):
        b = g.add(f"{a}.mean({g.axis(a)}, keepdim=True)")
    else:
        b = g.add(g.one(f"{a}.flip({g.axis(a)})", f"torch.sigmoid({a})", f"F.relu({a})"))
    return (a, b) if g.chance(0.5) else (b, a)


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...] | None:
    try:
        return tuple(torch.broadcast_shapes(a, b)) if len(a) == len(b) else None
    except RuntimeError:
        return None


@makes("add", weight=4)
def add(g: Growth) -> str:
    """Residual sums, sums that broadcast, a ReLU behind some."""
    a, b = _pair(g)
    v = g.add(g.one(f"{a} + {b}", f"{a} + {b}", f"torch.add({a}, {b})", f"{a}.add({b})"))
    return g.add(f"F.relu({v})") if g.chance(0.3) else v


@makes("sub")
def sub(g: Growth) -> str:
    """Of two values."""
    a, b = _pair(g)
    return g.add(g.one(f"{a} - {b}", f"torch.sub({a}, {b})"))


@makes("mul", weight=2)
def mul(g: Growth) -> str:
    """Products and gates."""
    if g.chance(0.4):
        return squeeze_and_excite(g)
    a, b = _pair(g)
    return g.add(g.one(f"{a} * {b}", f"torch.mul({a}, {b})", f"{a}.mul({b})"))


def squeeze_and_excite(g: Growth) -> str:
    """A gate for each channel."""
    v = g.image()
    channels, hidden = g.shape(v)[1], g.one(2, 4)
    s = g.add(g.one(f"F.adaptive_avg_pool2d({v}, 1)", f"{v}.mean((2, 3), keepdim=True)"))
    s = g.add(f"F.relu({g.part(f'nn.Conv2d({channels}, {hidden}, 1)')}({s}))")
    s = g.add(f"{g.part(f'nn.Conv2d({hidden}, {channels}, 1)')}({s})")
    s = g.add(g.one(f"torch.sigmoid({s})", f"F.hardsigmoid({s})", f"{s}.tanh()"))
    return g.add(g.one(f"{v} * {s}", f"{s} * {v}"))


@makes("number", weight=2)
def number(g: Growth) -> str:
    """Sum, product, quotient, power with a number."""
    v = g.value()
    n = g.one("0.5", "3", "-0.25", "1.7", "0.1", f"{v}.shape[1] ** -0.5")
    power = g.one(f"{v} ** 2", f"torch.pow({v}, 3)", f"{v}.square()")
    return g.add(
        g.one(f"{v} + {n}", f"{n} - {v}", f"{v} * {n}", f"{v} / 3", f"{n} * {v}", f"-{v}", power)
    )


@makes("div", weight=0.5)
def div(g: Growth) -> str:
    """A quotient of two values, whose divisor a grid may round to zero, or by a parameter."""
    a, b = _pair(g)
    if g.chance(0.2):
        b = f"({g.parameter(*[1] * (len(g.shape(a)) - 1), g.shape(a)[-1])}.abs() + 0.1)"
    else:
        b = g.add(g.one(f"{b}.clamp(0.1, 2.0)", f"{b}.abs() + 0.01", f"torch.sigmoid({b})"))
    return g.add(g.one(f"{a} / {b}", f"torch.div({a}, {b})", f"{a}.divide({b})"))


@makes("floor_div_or_pow", weight=0.1)
def floor_div_or_pow(g: Growth) -> str:
    """A power of a value, which stays in float."""
    a, b = _pair(g)
    return g.add(f"torch.sigmoid({a}) ** {b}")


@makes("constant", weight=0.3)
def constant(g: Growth) -> str:
    """Sum or product with a parameter."""
    v = g.value()
    shape = [1, *g.shape(v)[1:]]
    shape = [n if g.chance(0.7) else 1 for n in shape]
    p = g.parameter(*shape, spread=0.5)
    return g.add(g.one(f"{v} + {p}", f"{v} * {p}", f"{p} * {v}"))


@makes("matmul", weight=1.5)
def matmul(g: Growth) -> str:
    """Of a value and its transpose, or of two that fit."""
    if g.chance(0.4):
        return attention(g)
    v = g.value(3, 4)
    other = g.add(f"{v}.transpose(-1, -2)")
    if g.chance(0.3):
        other = g.add(f"{other}.flip(1)")
    if len(g.shape(v)) == 3 and g.chance(0.3):
        return g.add(f"torch.bmm({v}, {other})")
    return g.add(g.one(f"{v} @ {other}", f"torch.matmul({v}, {other})", f"{v}.matmul({other})"))


def _tokens(g: Growth) -> str:
    """A value ``(N, L, C)``: an image's places, mostly."""
    if g.chance(0.3):
        return g.value(3, when=lambda shape: shape[1] <= 64)
    v = g.value(4, when=lambda shape: shape[2] * shape[3] <= 64)
    return g.add(g.one(f"{v}.flatten(2).transpose(1, 2)", f"{v}.flatten(2).permute(0, 2, 1)"))


def attention(g: Growth) -> str:
    """A module of torch, or its arithmetic line by line."""
    v = _tokens(g)
    length, width = g.shape(v)[1:]
    heads = g.divisor(width)
    if g.chance(0.4):
        part = g.part(f"nn.MultiheadAttention({width}, {heads}, batch_first=True)")
        return g.add(f"{part}({v}, {v}, {v}, need_weights=False)[0]")
    qkv = g.add(f"{g.part(f'nn.Linear({width}, {3 * width})')}({v})")
    heads_of = (
        f"chunk(3, -1)[{{}}].reshape(-1, {length}, {heads}, {width // heads}).transpose(1, 2)"
    )
    q, k, values = (g.add(f"{qkv}.{heads_of.format(i)}") for i in range(3))
    scores = g.add(f"{q} @ {k}.transpose(-2, -1)")
    if g.chance(0.7):
        scores = g.add(g.one(f"{scores} * {(width // heads) ** -0.5}", f"{scores} / 2"))
    if g.chance(0.2):
        scores = g.add(f"{scores} + {g.parameter(1, heads, length, length)}")
    if g.chance(0.2):
        seen = f"{g.parameter(length, length)} > -0.5"
        hidden = g.one(
            f"{scores}.masked_fill({seen}, -1e9)", f"torch.where({seen}, {scores}, -1e4)"
        )
        scores = g.add(hidden)
    mixed = g.add(f"{scores}.softmax(-1) @ {values}")
    mixed = g.add(f"{mixed}.transpose(1, 2).reshape(-1, {length}, {width})")
    return g.add(f"{g.part(f'nn.Linear({width}, {width})')}({mixed})")


@makes("einsum")
def einsum(g: Growth) -> str:
    """Products over a shared axis."""
    v = g.value(3, 4)
    other = g.add(g.one(f"{v}.flip(1)", f"F.relu({v})", f"torch.tanh({v})"))
    if len(g.shape(v)) == 3:
        equation = g.one("bik,bjk->bij", "bki,bkj->bij")
    else:
        equation = g.one("bchw,bckw->bchk", "bchw,bdhw->bcd", "bchw,bchw->bc", "...ij,...kj->...ik")
    return g.add(f"torch.einsum({equation!r}, {v}, {other})")


@makes("cat", weight=2)
def cat(g: Growth) -> str:
    """Of two or three values."""
    a = g.value()
    axis = g.axis(a)
    others = [n for n in g.values if _joins(g.shape(a), g.shape(n), axis)]
    parts = [a, *(g.one(*others) for _ in range(g.number(1, 2)))]
    g.rng.shuffle(parts)
    name = g.one("cat", "cat", "concat", "concatenate")
    return g.add(f"torch.{name}([{', '.join(parts)}], {g.one('', 'dim=')}{axis})")


def _joins(a: tuple[int, ...], b: tuple[int, ...], axis: int) -> bool:
    same = len(a) == len(b)
    return same and all(m == n or i == axis % len(a) for i, (m, n) in enumerate(zip(a, b)))  # noqa: B905


@makes("stack")
def stack(g: Growth) -> str:
    """Of two values of one shape, flattened again or not."""
    a = g.value(2, 3, 4)
    b = g.one(*(n for n in g.values if g.shape(n) == g.shape(a)))
    axis = g.number(1, len(g.shape(a)))
    v = g.add(f"torch.stack([{a}, {b}], {axis})")
    return g.add(f"{v}.flatten({axis - 1 or 1}, {axis or 1})") if g.chance(0.5) else v


# ---- averages -----------------------------------------------------------------------------------


@makes("avg_pool", weight=1.5)
def avg_pool(g: Growth) -> str:
    """Of one to three axes, with all options."""
    v = g.value(3, 4, 4, 4, 5, when=lambda shape: min(shape[2:]) >= 3)
    axes, kernel, stride = len(g.shape(v)) - 2, g.one(2, 2, 3), g.one(None, 1, 2)
    padding = g.number(0, kernel // 2)
    options = f"{kernel}, {stride}, {padding}, {g.chance(0.3)}, {g.chance(0.6)}"
    if axes > 1 and g.chance(0.15):
        options += f", {g.one(2, 3, 5)}"
    if g.chance(0.5):
        return g.add(f"{g.part(f'nn.AvgPool{axes}d({options})')}({v})")
    return g.add(f"F.avg_pool{axes}d({v}, {options})")


@makes("adaptive_avg_pool")
def adaptive_avg_pool(g: Growth) -> str:
    """To one value, to a few, to sizes that do not divide."""
    v = g.value(3, 4, 4, 4, 5)
    axes = len(g.shape(v)) - 2
    size = g.one("1", "1", "2", "3", *(["(2, None)", "(3, 2)"] if axes == 2 else []))
    module = g.part(f"nn.AdaptiveAvgPool{axes}d({size})")
    return g.add(g.one(f"{module}({v})", f"F.adaptive_avg_pool{axes}d({v}, {size})"))


@makes("sum", weight=0.5)
def sum_along(g: Growth) -> str:
    """As a mean."""
    return mean(g, "sum")


@makes("mean")
def mean(g: Growth, name: str = "mean") -> str:
    """Over axes of all kinds."""
    v = g.value(3, 4, 4, 5)
    axes: Any = g.axis(v)
    if len(g.shape(v)) >= 4 and g.chance(0.6):
        axes = g.one((2, 3), (-1, -2), (1, 2), [2, 3])
    keep = g.one("", ", keepdim=True", ", True")
    if len(g.shape(v)) == 3 and not keep and g.chance(0.5):
        keep = ", keepdim=True"
    return g.add(g.one(f"{v}.{name}({axes}{keep})", f"torch.{name}({v}, {axes}{keep})"))


_RESIZES = {3: "linear", 4: "bilinear", 5: "trilinear"}


@makes("resize")
def resize(g: Growth) -> str:
    """By factors and to sizes."""
    v = g.value(3, 4, 4, 4, 5, when=lambda shape: max(shape[2:]) <= 12 and min(shape[2:]) > 1)
    mode = _RESIZES[len(g.shape(v))]
    corners = g.one("", "", ", align_corners=False", ", align_corners=True")
    if g.chance(0.3):
        return g.add(f"{g.part(f'nn.Upsample(scale_factor=2, mode={mode!r}{corners})')}({v})")
    sizes = tuple(g.number(2, 14) for _ in g.shape(v)[2:])
    how = g.one("scale_factor=2", "scale_factor=1.5", "scale_factor=0.5", f"size={sizes}")
    if mode == "bilinear" and g.chance(0.1):
        corners = ", antialias=True"
    if g.chance(0.1):
        return g.add(f"F.interpolate({v}, size={sizes}, mode='area')")
    return g.add(f"F.interpolate({v}, {how}, mode={mode!r}{corners})")


@makes("resize_cubic", weight=0.5)
def resize_cubic(g: Growth) -> str:
    """By factors and to sizes."""
    v = g.value(4, when=lambda shape: max(shape[2:]) <= 12 and min(shape[2:]) > 2)
    how = g.one("scale_factor=2", "scale_factor=1.5", f"size=({g.number(3, 14)}, 9)")
    corners = g.one("", ", align_corners=True")
    return g.add(f"F.interpolate({v}, {how}, mode='bicubic'{corners})")


# ---- functions ----------------------------------------------------------------------------------

_ARGUMENTS = {"Threshold": "0.1, 0.0", "threshold": ", 0.1, 0.0", "threshold_": ", 0.1, 0.0"}
# Functions that not every number has, or that explode, with an operand that suits them.
_POSITIVE = ("log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal")
_BOUNDED = ("asin", "acos", "tan")
_STEEP = ("exp", "exp2", "expm1", "sinh", "cosh")


def pointwise_calls() -> Iterator[tuple[str, str, str]]:
    """Kind, name and further arguments of every call of a pointwise function in the table."""
    calls = calls_of(POINTWISE)
    for kind, owner in (("nn", nn), ("F", F), ("torch", torch), ("Tensor", torch.Tensor)):
        known = {"nn": calls["modules"], "Tensor": calls["methods"]}.get(kind, calls["functions"])
        for name in sorted(vars(owner)):
            call = name if kind == "Tensor" else getattr(owner, name)
            is_plain = (
                not name.startswith("_")
                and not name.endswith("_")
                and (kind in ("nn", "Tensor") or callable(call))
            )
            if is_plain and any(call is c or (kind == "Tensor" and call == c) for c in known):
                yield kind, name, _ARGUMENTS.get(name, "")


POINTWISE_CALLS = tuple(pointwise_calls())


@makes("pointwise", weight=4)
def pointwise(g: Growth) -> str:
    """Any function of the table."""
    v = _fresh(g)
    kind, name, further = g.one(*POINTWISE_CALLS)
    if name in _POSITIVE:
        v = f"({v}.abs() + 0.25)"
    elif name in _BOUNDED:
        v = f"(torch.tanh({v}) * 0.9)"
    elif name in _STEEP:
        v = f"({v} * 0.5)"
    if kind == "nn":
        return g.add(f"{g.part(f'nn.{name}({further})')}({v})")
    if name == "gelu" and g.chance(0.5):
        further = ", approximate='tanh'"
    return g.add(f"{v}.{name}()" if kind == "Tensor" else f"{kind}.{name}({v}{further})")


@makes("softmax")
def softmax(g: Growth) -> str:
    """Over any axis; the operand is sometimes scaled."""
    v = g.value(2, 3, 4)
    scaled = g.one(v, v, f"({v} * 0.5)")
    axis = g.axis(v)
    module = g.part(f"nn.Softmax(dim={axis})")
    return g.add(
        g.one(f"{module}({v})", f"torch.softmax({scaled}, {axis})", f"{v}.softmax({axis})")
    )


@makes("functional_softmax")
def functional_softmax(g: Growth) -> str:
    """Over any axis."""
    v = g.value(2, 3, 4)
    return g.add(f"F.softmax({v}, dim={g.axis(v)})")


@makes("layer_norm", weight=1.5)
def layer_norm(g: Growth) -> str:
    """Over one to three axes, with gains or without."""
    v = g.value(2, 3, 4, when=lambda shape: shape[-1] > 1)
    shape = g.shape(v)[g.number(1, len(g.shape(v)) - 1) :]
    eps = g.one("", "", ", eps=0.001")
    if g.chance(0.3):
        gains = f", {g.parameter(*shape)}, {g.parameter(*shape, spread=0.3)}"
        return g.add(f"F.layer_norm({v}, {shape}{g.one('', gains)})")
    affine = g.one("", "", ", elementwise_affine=False")
    return g.add(f"{g.part(f'nn.LayerNorm({shape}{eps}{affine})')}({v})")


@makes("group_norm", "instance_norm", weight=0.1)
def group_norm(g: Growth) -> str:
    """Over groups of channels, or over each channel alone."""
    v = g.value(3, 4, 4, when=lambda shape: math.prod(shape[2:]) > 3)
    channels, axes = g.shape(v)[1], len(g.shape(v)) - 2
    if g.chance(0.3):
        return g.add(f"{g.part(f'nn.InstanceNorm{axes}d({channels})')}({v})")
    return g.add(f"{g.part(f'nn.GroupNorm({g.divisor(channels)}, {channels})')}({v})")


@makes("rms_norm", weight=0.1)
def rms_norm(g: Growth) -> str:
    """Over the last axis."""
    v = g.value(2, 3, 4, when=lambda shape: shape[-1] > 1)
    return g.add(f"{g.part(f'nn.RMSNorm({g.shape(v)[-1]}, eps=1e-05)')}({v})")


@makes("norm_along", weight=0.3)
def norm_along(g: Growth) -> str:
    """Layer norm or RMS norm along an axis, mostly written out; some with another reader."""
    v = g.value(3, 4, when=lambda shape: min(shape[1:]) > 2)
    axis = g.axis(v)
    if g.chance(0.3):
        return g.add(f"{g.part(f'NormAlong(({axis},), 1e-05, {g.chance(0.5)})')}({v})")
    x = g.add(f"{v} - {v}.mean({axis}, keepdim=True)") if g.chance(0.5) else v
    s = g.add(g.one(f"{x}.pow(2)", f"{x} * {x}") + f".mean({axis}, keepdim=True)")
    y = g.one(f"{x} / torch.sqrt({s} + 1e-05)", f"{x} * torch.rsqrt({s} + 1e-05)")
    w = g.parameter(g.shape(v)[axis], *[1] * ((len(g.shape(v)) - 1 - axis) % len(g.shape(v))))
    return g.add(g.one(y, f"{w} * ({y})", f"({y}) * {w} + {w}"))


@makes("normalize", weight=0.1)
def normalize(g: Growth) -> str:
    """To length one along an axis."""
    v = g.value()
    return g.add(f"F.normalize({v}, dim={g.axis(v)})")


@makes("vector_norm", "norm", weight=0.2)
def vector_norm(g: Growth) -> str:
    """Lengths along an axis, as a factor or divisor of the values too."""
    v = g.value(3, 4)
    axes: Any = g.axis(v)
    if len(g.shape(v)) == 4 and g.chance(0.3):
        axes = g.one((2, 3), (-1, 1), [1, 2])
    call = g.one(".norm(", ".norm(p=2, ", "torch.norm", "torch.linalg.vector_norm")
    if call.startswith("torch"):
        n = g.add(f"{call}({v}, dim={axes}, keepdim=True)")
    else:
        n = g.add(f"{v}{call}dim={axes}, keepdim=True)")
    return g.add(g.one(n, f"{v} * {n}", f"{v} / ({n} + 1e-6)", f"{n} / {n}.amax(1, keepdim=True)"))


@makes("prelu", weight=0.1)
def prelu(g: Growth) -> str:
    """One slope, or one for each channel."""
    v = g.value()
    return g.add(f"{g.part(f'nn.PReLU({g.one(1, g.shape(v)[1])})')}({v})")


@makes("log_softmax", weight=0.1)
def log_softmax(g: Growth) -> str:
    """Over any axis."""
    v = g.value()
    return g.add(f"F.log_softmax({v}, dim={g.axis(v)})")


# ---- operations that move values ----------------------------------------------------------------


def _pool_options(g: Growth, v: str) -> str:
    kernel = g.one(2, 2, 3)
    return f"{kernel}, {g.one(None, 1, 2)}, {g.number(0, kernel // 2)}"


@makes("max_pool", weight=1.5)
def max_pool(g: Growth) -> str:
    """Of one to three axes, with all options."""
    v = g.value(3, 4, 4, 4, 5, when=lambda shape: min(shape[2:]) >= 5)
    axes = len(g.shape(v)) - 2
    options = f"{_pool_options(g, v)}, {g.one(1, 1, 2)}, ceil_mode={g.chance(0.3)}"
    module = g.part(f"nn.MaxPool{axes}d({options})")
    return g.add(g.one(f"{module}({v})", f"F.max_pool{axes}d({v}, {options})"))


@makes("max_pool_with_indices", weight=0.3)
def max_pool_with_indices(g: Growth) -> str:
    """The values alone."""
    v = g.image(3)
    return g.add(f"F.max_pool2d({v}, {_pool_options(g, v)}, return_indices=True)[0]")


@makes("max_unpool", weight=0.3)
def max_unpool(g: Growth) -> str:
    """Behind a pool that gave the places."""
    v = g.value(4, when=lambda shape: shape[2] % 2 == shape[3] % 2 == 0)
    pool = f"F.max_pool2d({v}, 2, return_indices=True)"
    return g.add(f"F.max_unpool2d({pool}[0], {pool}[1], 2)")


@makes("adaptive_max_pool", weight=0.7)
def adaptive_max_pool(g: Growth) -> str:
    """To a few values."""
    v = g.value(3, 4, 4, 4)
    axes, size = len(g.shape(v)) - 2, g.one(1, 2, 3)
    module = g.part(f"nn.AdaptiveMaxPool{axes}d({size})")
    return g.add(g.one(f"{module}({v})", f"F.adaptive_max_pool{axes}d({v}, {size})"))


@makes("adaptive_max_pool_with_indices", weight=0.2)
def adaptive_max_pool_with_indices(g: Growth) -> str:
    """The values alone."""
    return g.add(f"F.adaptive_max_pool2d({g.image()}, {g.one(1, 2)}, return_indices=True)[0]")


@makes("extreme", weight=0.7)
def extreme(g: Growth) -> str:
    """Largest and smallest values along axes."""
    v = g.value(3, 4, 4)
    axes: Any = g.axis(v) if len(g.shape(v)) == 3 or g.chance(0.5) else (2, 3)
    keep = g.one("", ", keepdim=True") if len(g.shape(v)) > 3 else ", keepdim=True"
    return g.add(g.one(f"{v}.amax({axes}{keep})", f"torch.amin({v}, {axes}{keep})"))


@makes("max", "max_with_indices", weight=0.5)
def max_along(g: Growth) -> str:
    """Values of a pair, or the largest value of all."""
    v, name = g.value(3, 4, 4), g.one("max", "min")
    if g.chance(0.3):
        return g.add(f"{v} - torch.{name}({v})")
    axis = g.axis(v)
    keep = "" if len(g.shape(v)) > 3 and g.chance(0.5) else ", keepdim=True"
    call = g.one(f"{v}.{name}({axis}{keep})", f"torch.{name}({v}, dim={axis}{keep})")
    return g.add(f"{call}{g.one('[0]', '.values')}")


@makes("maximum", weight=0.7)
def maximum(g: Growth) -> str:
    """Of two values."""
    (a, b), name = _pair(g), g.one("max", "min")
    return g.add(g.one(f"torch.{name}imum({a}, {b})", f"torch.{name}({a}, {b})"))


@makes("unfold", weight=0.5)
def unfold(g: Growth) -> str:
    """Windows of an image, a column each."""
    v = g.value(4, when=lambda shape: min(shape[2:]) >= 3 and math.prod(shape[1:]) <= 600)
    options = f"{g.one(2, 3, (1, 2))}, padding={g.number(0, 1)}, stride={g.one(1, 2)}"
    module = g.part(f"nn.Unfold({options})")
    return g.add(g.one(f"{module}({v})", f"F.unfold({v}, {options})"))


@makes("unfold_axis", weight=0.5)
def unfold_axis(g: Growth) -> str:
    """Windows along an axis."""
    v = g.value(3, 4, when=lambda shape: shape[-1] >= 3)
    return g.add(f"{v}.unfold(-1, {g.number(1, 3)}, {g.number(1, 2)})")


@makes("fold", weight=0.3)
def fold(g: Growth) -> str:
    """Windows of an image, put back."""
    v = g.value(4, when=lambda shape: min(shape[2:]) >= 3 and math.prod(shape[1:]) <= 600)
    options = f"{g.one(2, 3)}, {g.one(1, 1, 2)}, 1, {g.one(1, 2)}"
    columns = g.add(f"F.unfold({v}, {options})")
    return g.add(f"F.fold({columns}, {g.shape(v)[2:]}, {options})")


@makes("resize_nearest")
def resize_nearest(g: Growth) -> str:
    """By factors and to sizes."""
    v = g.value(3, 4, 4, 4, 5, when=lambda shape: max(shape[2:]) <= 12)
    sizes = tuple(g.number(2, 14) for _ in g.shape(v)[2:])
    how = g.one("scale_factor=2", "scale_factor=1.5", f"size={sizes}")
    mode = g.one("", "", ", mode='nearest-exact'")
    if g.chance(0.3):
        return g.add(f"{g.part('nn.Upsample(scale_factor=2)')}({v})")
    return g.add(f"F.interpolate({v}, {how}{mode})")


@makes("pad")
def pad(g: Growth) -> str:
    """With zeros, or cropped."""
    v = g.value(3, 4, 4, 5, when=lambda shape: min(shape[2:]) >= 3)
    widths = tuple(g.number(-1, 2) for _ in range(2 * g.number(1, len(g.shape(v)) - 2)))
    if len(g.shape(v)) == 4 and g.chance(0.3):
        return g.add(f"{g.part(f'nn.ZeroPad2d({g.number(1, 2)})')}({v})")
    return g.add(f"F.pad({v}, {widths})")


@makes("pad_with_value", weight=0.5)
def pad_with_value(g: Growth) -> str:
    """With a number that lies on no grid of the value, mostly."""
    v = g.value(3, 4, 4, 5, when=lambda shape: min(shape[2:]) >= 3)
    widths = tuple(g.number(-1, 2) for _ in range(2 * g.number(1, len(g.shape(v)) - 2)))
    value = g.one(1.0, -1, 0.37, -2.5)
    if len(g.shape(v)) == 4 and g.chance(0.3):
        return g.add(f"{g.part(f'nn.ConstantPad2d({g.number(1, 2)}, {value})')}({v})")
    return g.add(f"F.pad({v}, {widths}, value={value})")


@makes("pad_below", weight=0.5)
def pad_below(g: Growth) -> str:
    """In front of a max pool, as TensorFlow's 'same' padding is written."""
    v = g.value(4, when=lambda shape: min(shape[2:]) >= 3)
    widths = tuple(g.number(0, 1) for _ in range(4))
    padded = f"F.pad({v}, {widths}, value=-torch.inf)"
    return g.add(f"F.max_pool2d({padded}, {g.number(2, 3)}, {g.number(1, 2)})")


@makes("slice_scatter", "select_scatter", weight=0.5)
def scatter(g: Growth) -> str:
    """A part along an axis written anew; in place, which symbolic tracing cannot follow, some."""
    v = g.value(3, 4, 4, when=lambda shape: min(shape[1:]) >= 3)
    axis = g.number(1, len(g.shape(v)) - 1)
    if g.chance(0.4):
        part = f"{v}.select({axis}, 0) + {v}.select({axis}, -1)"
        return g.add(f"torch.select_scatter({v}, {part}, {axis}, {g.one(0, 1, -1)})")
    start, end = g.one((0, 1), (1, g.shape(v)[axis]), (1, g.shape(v)[axis] - 1), (0, None))
    length = (end or g.shape(v)[axis]) - start
    part = f"torch.tanh({v}.narrow({axis}, 0, {length}))"
    return g.add(f"torch.slice_scatter({v}, {part}, {axis}, {start}, {end})")


@makes("pad_from_inside")
def pad_from_inside(g: Growth) -> str:
    """Reflected, repeated, circular."""
    v = g.value(3, 4, 4, 5, when=lambda shape: min(shape[2:]) >= 3)
    axes = len(g.shape(v)) - 2
    widths = tuple(g.number(0, 2) for _ in range(2 * axes))
    if g.chance(0.3):
        kind = g.one("Replication", "Reflection")
        return g.add(f"{g.part(f'nn.{kind}Pad{axes}d({g.number(1, 2)})')}({v})")
    return g.add(f"F.pad({v}, {widths}, mode={g.one('reflect', 'replicate', 'circular')!r})")


@makes("to_type", weight=0.2)
def to_type(g: Growth) -> str:
    """Of float32 to float32."""
    v = g.value()
    how = g.one("float()", "to(torch.float32)", f"type_as({v})", f"to({v}.dtype)", "to('cpu')")
    return g.add(f"{v}.{how}")


@makes("identity", "to_device", "dropout", "drop_path", weight=0.2)
def identity(g: Growth) -> str:
    """All that changes nothing in evaluation."""
    v = g.value()
    dropped = f"{g.part(g.one('nn.Dropout(0.1)', 'nn.Identity()', 'nn.AlphaDropout(0.1)'))}({v})"
    return g.add(g.one(dropped, f"{v}.contiguous()", f"{v}.clone()", f"{v}.cpu()", f"{v}.detach()"))


MAKERS |= {
    "identity": lambda g: g.add(f"{g.value()}.{g.one('contiguous', 'clone', 'detach')}()"),
    "to_device": lambda g: g.add(f"{g.value()}.cpu()"),
    "dropout": lambda g: g.add(f"{g.part('nn.Dropout(0.1)')}({g.value()})"),
    "drop_path": lambda g: g.add(f"{g.part('nn.AlphaDropout(0.1)')}({g.value()})"),
}


@makes("flatten", weight=0.7)
def flatten(g: Growth) -> str:
    """Some axes, not the batch."""
    v = g.value(3, 4, 4, 5)
    start = g.number(1, len(g.shape(v)) - 2)
    end = g.one(-1, g.number(start + 1, len(g.shape(v)) - 1))
    module = g.part(f"nn.Flatten({start}, {end})")
    return g.add(
        g.one(f"torch.flatten({v}, {start}, {end})", f"{v}.flatten({start})", f"{module}({v})")
    )


def _split_axis(g: Growth) -> tuple[str, int, int]:
    """A value, an axis of it, and a proper divisor of its size."""
    v = g.value(when=lambda shape: any(n > 3 and _divisors(n) for n in shape[1:]))
    axes = [i for i, n in enumerate(g.shape(v)) if i and n > 3 and _divisors(n)]
    axis = g.one(*axes)
    return v, axis, g.one(*_divisors(g.shape(v)[axis]))


def _divisors(number: int) -> list[int]:
    return [n for n in range(2, number) if number % n == 0]


@makes("unflatten", weight=0.7)
def unflatten(g: Growth) -> str:
    """One axis becomes two."""
    v, axis, divisor = _split_axis(g)
    if len(g.shape(v)) > 4:
        raise Unsuitable
    sizes = (divisor, g.one(-1, g.shape(v)[axis] // divisor))
    module = g.part(f"nn.Unflatten({axis}, {(divisor, g.shape(v)[axis] // divisor)})")
    return g.add(g.one(f"{v}.unflatten({axis}, {sizes})", f"{module}({v})"))


@makes("reshape")
def reshape(g: Growth) -> str:
    """To an image, to a line, to what it was; the batch is -1 or read from the value."""
    v = g.value()
    numel = math.prod(g.shape(v)[1:])
    width = g.divisor(numel)
    rest = numel // width
    height = g.divisor(rest)
    sizes = g.one(f"{numel}", f"{rest}, {width}", f"{rest // height}, {height}, {width}")
    batch = g.one("-1", f"{v}.shape[0]", f"{v}.size(0)")
    view = "view" if g.values[v].is_contiguous() and g.chance(0.3) else "reshape"
    return g.add(g.one(f"{v}.{view}({batch}, {sizes})", f"torch.reshape({v}, ({batch}, {sizes}))"))


@makes("reshape_as", weight=0.3)
def reshape_as(g: Growth) -> str:
    """To the shape of another value."""
    v = g.value(3, 4, 4)
    return g.add(f"{g.add(f'{v}.flatten(1)')}.reshape_as({v})")


@makes("squeeze", weight=0.5)
def squeeze(g: Growth) -> str:
    """An axis of size one."""
    v = g.value(3, 4, 4)
    axis = g.number(1, len(g.shape(v)) - 1)
    if g.shape(v)[axis] != 1:
        v = g.add(f"{v}.narrow({axis}, 0, 1)")
    return g.add(g.one(f"{v}.squeeze({axis})", f"torch.squeeze({v}, {axis})"))


@makes("unsqueeze", weight=0.5)
def unsqueeze(g: Growth) -> str:
    """Anywhere behind the batch."""
    v = g.value(2, 3, 4)
    axis = g.number(1, len(g.shape(v)))
    return g.add(g.one(f"{v}.unsqueeze({axis})", f"torch.unsqueeze({v}, {axis})"))


@makes("permute")
def permute(g: Growth) -> str:
    """All axes but the batch."""
    v = g.value(3, 4, 4, 5)
    axes = list(range(1, len(g.shape(v))))
    g.rng.shuffle(axes)
    order = ", ".join(map(str, [0, *axes]))
    return g.add(g.one(f"{v}.permute({order})", f"torch.permute({v}, ({order}))"))


@makes("transpose")
def transpose(g: Growth) -> str:
    """Two axes."""
    v = g.value(3, 4, 4, 5)
    axes = f"{g.axis(v)}, {g.axis(v)}"
    name = g.one("transpose", "swapaxes", "swapdims")
    return g.add(g.one(f"{v}.{name}({axes})", f"torch.{name}({v}, {axes})"))


@makes("movedim", weight=0.5)
def movedim(g: Growth) -> str:
    """One axis."""
    v = g.value(3, 4, 4, 5)
    axes = f"{g.axis(v)}, {g.axis(v)}"
    return g.add(g.one(f"{v}.movedim({axes})", f"torch.movedim({v}, {axes})"))


@makes("split", weight=2)
def split(g: Growth) -> str:
    """All parts, or some of them."""
    v = g.value(when=lambda shape: max(shape[1:]) >= 2)
    axis = g.one(*(i for i, n in enumerate(g.shape(v)) if i and n >= 2))
    size = g.shape(v)[axis]
    first = g.number(1, size - 1)
    call = g.one(
        f"{v}.chunk(2, {axis})",
        f"torch.split({v}, {(size + 1) // 2}, dim={axis})",
        f"torch.split({v}, [{first}, {size - first}], {axis})",
        f"{v}.tensor_split(2, dim={axis})",
    )
    last = g.add(f"{call}[{g.number(0, 1)}]")
    return g.add(f"{call}[{g.number(0, 1)}]") if g.chance(0.5) else last


@makes("unbind", weight=0.5)
def unbind(g: Growth) -> str:
    """One part."""
    v = g.value(3, 4, 5)
    axis = g.number(1, len(g.shape(v)) - 1)
    place = g.number(0, g.shape(v)[axis] - 1)
    return g.add(g.one(f"{v}.unbind({axis})[{place}]", f"torch.unbind({v}, {axis})[{place}]"))


@makes("index", weight=1.5)
def index(g: Growth) -> str:
    """Slices, steps, lists, numbers, new axes."""
    v = g.value()
    last = g.shape(v)[-1]
    keys = g.one(
        *(
            ":, ::2",
            f":, {g.number(0, g.shape(v)[1] - 1)}:",
            ":, [0, -1, 0]",
            "..., :2",
            "..., -1:",
        ),
        *(f"..., {last // 2}:", "..., ::3", ":, None", ":, -1", "..., 0", "..., 1:"),
    )
    return g.add(f"{v}[{keys}]")


@makes("select", weight=0.7)
def select(g: Growth) -> str:
    """A part along an axis."""
    v = g.value(3, 4, 4)
    axis = g.number(1, len(g.shape(v)) - 1)
    start = g.number(0, g.shape(v)[axis] - 1)
    length = g.number(1, g.shape(v)[axis] - start)
    return g.add(
        g.one(
            f"{v}.narrow({axis}, {start}, {length})",
            f"{v}.select({axis}, {start})",
            f"torch.index_select({v}, {axis}, torch.tensor([{start}, 0]))",
        )
    )


@makes("flip", weight=0.5)
def flip(g: Growth) -> str:
    """One axis."""
    v = g.value()
    return g.add(g.one(f"{v}.flip({g.axis(v)})", f"torch.flip({v}, [{g.axis(v)}])"))


@makes("roll", weight=0.5)
def roll(g: Growth) -> str:
    """One axis or two."""
    v = g.value()
    if len(g.shape(v)) == 4 and g.chance(0.5):
        return g.add(f"torch.roll({v}, (1, -2), (2, 3))")
    return g.add(g.one(f"{v}.roll({g.number(-2, 2)}, {g.axis(v)})"))


@makes("expand", "expand_as", weight=0.3)
def expand(g: Growth) -> str:
    """One channel becomes several."""
    v = g.value(3, 4, 4)
    one = g.add(f"{v}[:, :1]")
    rest = ", ".join(["-1"] * (len(g.shape(v)) - 2))
    return g.add(g.one(f"{one}.expand(-1, {g.number(2, 4)}, {rest})", f"{one}.expand_as({v})"))


@makes("repeat", weight=0.5)
def repeat(g: Growth) -> str:
    """Along an axis."""
    v = g.value(2, 3, 4)
    counts = [1] * len(g.shape(v))
    counts[g.number(1, len(counts) - 1)] = g.number(2, 3)
    return g.add(g.one(f"{v}.repeat({counts})", f"torch.tile({v}, {tuple(counts)})"))


@makes("repeat_interleave", weight=0.5)
def repeat_interleave(g: Growth) -> str:
    """Along an axis."""
    v = g.value(2, 3, 4)
    call = f"({v}, 2, {g.axis(v)})"
    return g.add(g.one(f"torch.repeat_interleave{call}", f"{v}.repeat_interleave(2, {g.axis(v)})"))


@makes("pixel_shuffle", weight=0.5)
def pixel_shuffle(g: Growth) -> str:
    """By two."""
    v = g.value(4, when=lambda shape: shape[1] % 4 == 0)
    return g.add(g.one(f"{g.part('nn.PixelShuffle(2)')}({v})", f"F.pixel_shuffle({v}, 2)"))


@makes("pixel_unshuffle", weight=0.5)
def pixel_unshuffle(g: Growth) -> str:
    """By two."""
    v = g.value(4, when=lambda shape: shape[2] % 2 == shape[3] % 2 == 0)
    return g.add(g.one(f"{g.part('nn.PixelUnshuffle(2)')}({v})", f"F.pixel_unshuffle({v}, 2)"))


@makes("channel_shuffle", weight=0.5)
def channel_shuffle(g: Growth) -> str:
    """Of two groups or more."""
    v = g.value(4, when=lambda shape: bool(_divisors(shape[1])))
    groups = g.one(*_divisors(g.shape(v)[1]))
    return g.add(
        g.one(f"{g.part(f'nn.ChannelShuffle({groups})')}({v})", f"F.channel_shuffle({v}, {groups})")
    )


# ---- floats -------------------------------------------------------------------------------------


@makes("unknown", weight=0.05)
def unknown(g: Growth) -> str:
    """Something that stays in float."""
    v = g.value()
    return g.add(g.one(f"{v}.cumsum({g.axis(v)})", f"torch.atan2({v}, {v}.abs() + 1.0)"))
