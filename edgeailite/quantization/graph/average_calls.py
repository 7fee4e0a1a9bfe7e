"""Calls of averages as modules whose windows :class:`WindowSum` knows."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from edgeailite.quantization.graph.calls import argument, arguments, operation_of
from edgeailite.quantization.graph.operations import (
    ADAPTIVE_AVG_POOL,
    AVG_POOL,
    MEAN,
    SCALAR,
    SUM,
)
from edgeailite.quantization.graph.variants import contains_node, refused
from edgeailite.quantization.graph.window_sums import AdaptiveSum, Mean, Sum, WindowSum

_POOLS = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
_ADAPTIVE = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
# Sizes of a batch, channels and three more axes by which they are told apart.
_DISTINCT_SIZES = (1009, 1013, 1019, 1021, 1031)


def average_module(node: fx.Node, module: nn.Module | None) -> nn.Module:
    """Return the module that computes what an average's node computes.

    Args:
        node: Call of an average without :func:`unknown_windows`.
        module: The module it calls, for ``call_module`` nodes.
    """
    if module is not None:
        return module
    given = arguments(node)
    del given["input"]
    if operation_of(node) in (MEAN, SUM):
        dims = given["dim"] if given["dim"] is not None else ()
        kind = Mean if operation_of(node) is MEAN else Sum
        return kind([dims] if isinstance(dims, int) else dims, bool(given["keepdim"]))
    number = _spatial_axes(node)
    if operation_of(node) is ADAPTIVE_AVG_POOL:
        return _ADAPTIVE[number](**given)
    if _covers_the_image(node):
        return _ADAPTIVE[number](1)
    if number == 1:
        del given["divisor_override"]
    return _POOLS[number](**given)


def unknown_windows(node: fx.Node, module: nn.Module | None) -> str:
    """Say which argument leaves the windows of an average open; empty: they are known.

    Args:
        node: Call of an average.
        module: The module it calls, for ``call_module`` nodes.
    """
    if module is not None:
        return ""
    given = arguments(node)
    del given["input"]
    if operation_of(node) is MEAN:
        dims = given["dim"]
        listed = dims if isinstance(dims, tuple | list) else [dims]
        if not listed or None in listed or 0 in listed:
            return f"mean over dim={dims!r} includes the batch, which has no fixed size"
    return unknown_arguments(node, module)


def unknown_arguments(node: fx.Node, module: nn.Module | None) -> str:
    """Say which argument of an average is no number; empty: all are known.

    Args:
        node: Call of an average.
        module: The module it calls, for ``call_module`` nodes.
    """
    if module is not None or (operation_of(node) is AVG_POOL and _covers_the_image(node)):
        return ""
    given = arguments(node)
    del given["input"]
    return next((refused(k, v)[1] for k, v in given.items() if contains_node(v)), "")


def values_in_a_sum(node: fx.Node, module: nn.Module | None, value: torch.Tensor) -> int:
    """Largest number of values that an average sums; of unknown windows all.

    Args:
        node: Call of an average.
        module: The module it calls, for ``call_module`` nodes.
        value: That it averages.
    """
    if unknown_arguments(node, module):
        return value.numel()
    average = average_module(node, module)
    sums = (AdaptiveSum if hasattr(average, "output_size") else WindowSum)(average)
    axes = spatial_axes(average)
    shape = (1, *value.shape) if axes is not None and value.dim() == axes + 1 else value.shape
    return sums.count(shape) or value.numel()


def global_average(node: fx.Node, module: nn.Module | None) -> bool | None:
    """Return whether an average over whole images keeps its dimensions; None for any other.

    Args:
        node: Call of an average.
        module: The module it calls, for ``call_module`` nodes.
    """
    if operation_of(node) is ADAPTIVE_AVG_POOL:
        is_2d = isinstance(module, nn.AdaptiveAvgPool2d) or node.target is F.adaptive_avg_pool2d
        return True if is_2d and argument(node, "output_size") in (1, (1, 1), [1, 1]) else None
    if operation_of(node) is not MEAN:
        return None
    dims = argument(node, "dim")
    if not isinstance(dims, list | tuple) or set(dims) not in ({2, 3}, {-1, -2}):
        return None
    return bool(argument(node, "keepdim"))


def spatial_axes(average: nn.Module) -> int | None:
    """Number of axes that a module pools over; None for a mean."""
    kinds = ((n, (_POOLS[n], _ADAPTIVE[n])) for n in _POOLS)
    return next((n for n, types in kinds if isinstance(average, types)), None)


def _spatial_axes(node: fx.Node) -> int:
    """Number of axes that a pooling function, ``F.avg_pool2d`` and the like, pools over."""
    return int(str(getattr(node.target, "__name__", ""))[-2])


def _covers_the_image(node: fx.Node) -> bool:
    """Return True for a pooling whose one window is the image: ``F.avg_pool2d(x, x.shape[2:])``."""
    given = arguments(node)
    if given["divisor_override"] is not None or given["padding"] not in (0, (0, 0), [0, 0]):
        return False
    sizes = _DISTINCT_SIZES[: _spatial_axes(node) + 2]
    source, stand_in = given["input"], torch.empty(sizes, device="meta")
    try:
        kernel = fx.map_arg(given["kernel_size"], lambda n: _evaluate(n, source, stand_in))
    except LookupError:
        return False
    return isinstance(kernel, tuple | list) and tuple(kernel) == sizes[2:]


def _evaluate(node: fx.Node, source: fx.Node, stand_in: torch.Tensor) -> Any:
    """Compute sizes for a stand-in of one value.

    Raises:
        LookupError: They depend on something else.
    """
    if node is source:
        return stand_in
    if operation_of(node) is not SCALAR or node.op not in ("call_function", "call_method"):
        raise LookupError(node.name)

    def value_of(read: fx.Node) -> Any:
        return _evaluate(read, source, stand_in)

    args, kwargs = fx.map_arg(node.args, value_of), fx.map_arg(node.kwargs, value_of)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)
