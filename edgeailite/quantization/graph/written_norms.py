"""Norms that a model writes out: recognized, so that no grid comes between their operations.

One of 8 bits between ``x ** 2`` and the root would hold next to nothing of the small values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx

from edgeailite.quantization.graph.calls import arguments, operation_of
from edgeailite.quantization.graph.constants import is_known_before_the_input
from edgeailite.quantization.graph.model import add_module_at, free_path, graph_of, tidy
from edgeailite.quantization.graph.norm_along import NormAlong
from edgeailite.quantization.graph.normalizations import NORM, VECTOR_NORM
from edgeailite.quantization.graph.operations import CLAMP, MEAN
from edgeailite.quantization.graph.patterns import only_user
from edgeailite.quantization.graph.variants import is_constant

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel

_DIVIDES = ("truediv", "div", "divide", "true_divide")
_MULTIPLIES, _SUBTRACTS = ("mul", "multiply"), ("sub", "subtract")
# Less than the length of any vector on a grid, but that of zeros.
_SHORTEST = 1e-12

Axes = tuple[int, ...]


class _Norm(NamedTuple):
    """A norm of `x`, and all that it computes between that and its result."""

    x: fx.Node
    dim: Axes
    eps: float
    is_centered: bool
    between: list[fx.Node]


class _Root(NamedTuple):
    """The root of a value, or its inverse, with the nodes that compute it."""

    value: Any
    is_inverse: bool
    between: list[fx.Node]


def recognize_norms(model: GraphModel) -> None:
    """Let one call stand for each norm that a model writes out.

    RMS norm, ``x * rsqrt(mean(x^2) + eps)``, and layer norm, which takes ``x - mean(x)`` for `x`,
    along any axes, both with ``weight *`` and then ``bias +`` behind them; vectors of length 1,
    ``x / norm(x)``. Roots, squares and quotients may be written in any way. What lies between must
    have no other reader.

    Args:
        model: Captured; its graph is changed.
    """
    for node in list(graph_of(model).nodes):
        norm = next((n for n in _norms_at(node) if _is_closed(n.between, node)), None)
        if norm is not None:
            _place_norm(model, node, norm)
        else:
            _place_unit_vectors(node)
    tidy(model)


def _is_closed(between: list[fx.Node], last: fx.Node) -> bool:
    """Return True if nothing but the last node reads what lies before it."""
    own = {*between, last}
    return all(user in own for node in between for user in node.users)


# ---- a norm from behind -------------------------------------------------------------------------


def _norms_at(node: fx.Node) -> Iterator[_Norm]:
    """Norms whose result, without weight and bias, a node may be."""
    for x, root, is_inverse in _quotients_at(node):
        found = _root_at(root)
        if found is None or found.is_inverse != is_inverse or not isinstance(x, fx.Node):
            continue
        mean, eps = _parts_of_sum(found.value)
        variance = _variance_at(mean)
        centered = _centered_at(x, variance[1]) if variance else None
        if variance and centered and centered[0] is variance[0]:
            between = [*found.between, found.value, mean, x, centered[1]]
            yield _Norm(centered[0], variance[1], eps, True, between)
        square, dim = _mean_at(mean)
        y = _squared_at(square)
        if y is None:
            continue
        between = [*found.between, found.value, mean, square]
        one, other = _centered_at(x, dim), _centered_at(y, dim)
        if one is not None and other is not None and one[0] is other[0]:
            yield _Norm(one[0], dim, eps, True, [*between, x, y, one[1], other[1]])
        if x is y:
            yield _Norm(x, dim, eps, False, between)


def _called(node: Any, *names: str) -> tuple[Any, ...]:
    """Arguments of a call of a function or method of these names, without keywords; else empty."""
    if not isinstance(node, fx.Node) or node.op not in ("call_function", "call_method"):
        return ()
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    return node.args if name in names and not node.kwargs else ()


def _quotients_at(node: fx.Node) -> Iterator[tuple[Any, Any, bool]]:
    """Dividend and divisor, or a factor and the inverse of a divisor, which then is True."""
    divided, factors = _called(node, *_DIVIDES), _called(node, *_MULTIPLIES)
    if len(divided) == 2:
        yield *divided, False
    if len(factors) == 2:
        yield *factors, True
        yield *factors[::-1], True


def _root_at(node: Any) -> _Root | None:
    """Root, or its inverse, that a node is."""
    for name, is_inverse, exponent in (("sqrt", False, 0.5), ("rsqrt", True, -0.5)):
        given, power = _called(node, name), _called(node, "pow")
        if given or power[1:] == (exponent,):
            return _Root((given or power)[0], is_inverse, [node])
    inverted, product = _called(node, "reciprocal"), _called(node, *_MULTIPLIES)
    if _called(node, *_DIVIDES)[:1] == (1,):
        inverted = node.args[1:]
    same = product[:1] if product[1:] == (1,) else ()  # torch.export: 1 / x is reciprocal(x) * 1
    found = _root_at((*inverted, *same)[0]) if inverted or same else None
    if found is None:
        return None
    return _Root(found.value, found.is_inverse ^ bool(inverted), [*found.between, node])


def _parts_of_sum(node: Any) -> tuple[Any, float]:
    """Value and number that are added; without a number 0."""
    given = _called(node, "add")
    for value, number in (given, given[::-1]) if len(given) == 2 else ():
        if isinstance(number, int | float) and number >= 0:
            return value, float(number)
    return node, 0.0


def _mean_at(node: Any) -> tuple[Any, Axes]:
    """Value whose mean a node is, and along which axes, which stay; no axes: it is none."""
    if not isinstance(node, fx.Node) or operation_of(node) is not MEAN:
        return None, ()
    given = arguments(node)
    dim = given["dim"] if isinstance(given["dim"], tuple | list) else (given["dim"],)
    known = given["keepdim"] is True and all(isinstance(axis, int) for axis in dim)
    return given["input"], tuple(dim) if known else ()


def _variance_at(node: Any) -> tuple[Any, Axes] | None:
    """Value whose variance, divided by the number of values, a node is, and along which axes."""
    if not isinstance(node, fx.Node) or node.target not in ("var", torch.var):
        return None
    given = dict(node.kwargs)
    names = ("input", "dim", "unbiased", "keepdim")
    given.update(zip(names, node.args, strict=False))
    correction = given.get("correction", given.get("unbiased", 1))
    dim = given.get("dim", given.get("axis"))
    axes = tuple(dim) if isinstance(dim, tuple | list) else (dim,)
    known = all(isinstance(axis, int) and not isinstance(axis, bool) for axis in axes)
    plain = correction == 0 and given.get("keepdim") is True and known
    return (given["input"], axes) if plain else None


def _squared_at(node: Any) -> fx.Node | None:
    """Value whose square a node is."""
    power, factors = _called(node, "pow"), _called(node, *_MULTIPLIES)
    if power[1:] in ((2,), (2.0,)):
        value = power[0]
    elif len(factors) == 2 and factors[0] is factors[1]:
        value = factors[0]
    else:
        value = next(iter(_called(node, "square")), None)
    return value if isinstance(value, fx.Node) else None


def _centered_at(node: fx.Node, dim: Axes) -> tuple[fx.Node, fx.Node] | None:
    """Value that a node is without its mean along axes, and the mean."""
    given = _called(node, *_SUBTRACTS)
    if len(given) != 2 or _mean_at(given[1]) != (given[0], dim):
        return None
    return given[0], given[1]


# ---- calls in its place -------------------------------------------------------------------------


def _place_norm(model: GraphModel, node: fx.Node, norm: _Norm) -> None:
    """Call a module in the place of a norm, with what weights it and is added to it then."""
    last, weight, bias = node, _constant_beside(node, *_MULTIPLIES), None
    if weight is not None:
        last = next(iter(node.users))
        bias = _constant_beside(last, "add")
        last = last if bias is None else next(iter(last.users))
    owner, name = node.meta.get("owner", ""), "layer_norm" if norm.is_centered else "rms_norm"
    path = free_path(model, f"{owner}.{name}" if owner else name)
    add_module_at(model, path, NormAlong(norm.dim, norm.eps, norm.is_centered))
    with graph_of(model).inserting_before(last):
        call = graph_of(model).call_module(path, (norm.x, weight, bias))
    _replace(last, call)


def _constant_beside(node: fx.Node, *names: str) -> fx.Node | None:
    """Constant that alone reads a node together with, in a call of these names."""
    user = only_user(node)
    given = [value for value in _called(user, *names) if value is not node]
    if len(given) != 1 or not isinstance(given[0], fx.Node) or not is_constant(given[0]):
        return None
    return given[0] if is_known_before_the_input(given[0]) else None


def _replace(node: fx.Node, call: fx.Node) -> None:
    call.meta.update({key: value for key, value in node.meta.items() if key != "call"})
    node.replace_all_uses_with(call)


def _place_unit_vectors(node: fx.Node) -> None:
    """``x / norm(x)`` and ``x / norm(x).clamp(min=eps)`` are ``F.normalize``."""
    given = _called(node, *_DIVIDES)
    if len(given) != 2 or not isinstance(given[1], fx.Node):
        return
    x, length, eps, between = *given, _SHORTEST, [given[1]]
    if operation_of(length) is CLAMP:
        length, eps, high = (arguments(length)[name] for name in ("input", "min", "max"))
        between.append(length)
        if high is not None or not isinstance(eps, int | float):
            return
    if operation_of(length) not in (NORM, VECTOR_NORM) or not _is_closed(between, node):
        return
    options = arguments(length)
    dim = options["dim"] if isinstance(options["dim"], tuple | list) else [options["dim"]]
    if options["input"] is x and options["keepdim"] is True and len(dim) == 1:
        with node.graph.inserting_before(node):
            call = node.graph.call_function(F.normalize, (x, 2.0, dim[0], float(eps)))
        _replace(node, call)
