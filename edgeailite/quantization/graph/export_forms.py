"""Functions that torch's ONNX exporter loses an argument of, as others that it writes whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from edgeailite.quantization.graph.nearest import gather_neighbours
from edgeailite.quantization.graph.window_sums import AdaptiveSum, WindowSum, of_axes


class ExportForms(TorchFunctionMode):
    """While it is entered, some functions are computed by others with the same values.

    * Average pools: the exporter drops ``divisor_override``, and ONNX Runtime's integer kernel
      counts the places of windows that ``ceil_mode`` lets end outside of the image otherwise than
      torch does. Such averages are sums, divided by their areas.
    * Nearest neighbours: see :mod:`~edgeailite.quantization.graph.nearest`.
    * ``conv3d`` without bias: the exporter makes one of a wrong shape.
    * ``AdaptiveAvgPool3d``: the exporter has it for one window alone. It is sums, divided as above.
    * Max pools: without a window of ``ceil_mode`` that would begin behind the image, torch has one
      window less than ONNX.
    * An index that is a list, and ``roll``: ONNX Runtime does not load the exporter's form between
      signed integers at opset 21, and has no integer operator for it.
    * Adaptive maxima: the exporter has them for windows of one size alone.
    * ``squeeze`` of an axis that is longer than 1: the exporter writes a Squeeze all the same.
    * ``amax`` and ``amin`` without axes.
    * ``F.unfold``: the exporter computes the places of the windows in the file.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call the form of a function, or the function itself."""
        form = _FORMS.get(func)
        given = kwargs or {}
        return func(*args, **given) if form is None else form(func, *args, **given)


def _average(
    function: Callable[..., Tensor],
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    axes = _POOLED_AXES[function]
    pool = _POOLS[axes](kernel_size, stride or None, padding, ceil_mode, count_include_pad)
    vars(pool)["divisor_override"] = divisor_override
    batch = input if input.dim() == axes + 2 else input.unsqueeze(0)
    sums = WindowSum(pool)
    if sums.is_plain(batch.shape):
        return function(input, kernel_size, stride, padding, False, count_include_pad)
    with ExportForms():
        result = sums(batch) / _number_or_tensor(sums.areas(batch.shape))
    return result if batch is input else result.squeeze(0)


def _number_or_tensor(areas: Tensor) -> float | Tensor:
    return areas.item() if areas.dim() == 0 else areas.float()


def _convolution_3d(
    function: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *options: Any,
    **named: Any,
) -> Tensor:
    bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
    return function(input, weight, bias, *options, **named)


def _adaptive_average_3d(
    function: Callable[..., Tensor], input: Tensor, output_size: Any
) -> Tensor:
    batch = input if input.dim() == 5 else input.unsqueeze(0)
    sums = AdaptiveSum(nn.AdaptiveAvgPool3d(output_size))
    with ExportForms():
        result = sums(batch) / _number_or_tensor(sums.areas(batch.shape))
    return result if batch is input else result.squeeze(0)


def _maxima(
    function: Callable[..., Any],
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """A pool of each axis in its turn: the rule for its last window is the axis' own."""
    options = kernel_size, stride or kernel_size, padding, dilation
    if not ceil_mode:
        return function(input, *options)
    axes = _MAXIMA[function]
    spread = [of_axes(option, axes) for option in options]
    plain = [
        _has_plain_windows(input.shape[i - axes], *(o[i] for o in spread)) for i in range(axes)
    ]
    if all(plain):
        return function(input, *options)
    if not any(plain) or function in _MAXIMA_WITH_PLACES:
        return function(input, *options, ceil_mode=True)
    pairs = list(zip(spread, (1, 1, 0, 1), strict=True))  # options, and those that change nothing
    for i in range(axes):
        own = ([o[i] if j == i else none for j in range(axes)] for o, none in pairs)
        input = function(input, *own, ceil_mode=not plain[i])
    return input


def _has_plain_windows(size: int, kernel: int, stride: int, padding: int, dilation: int) -> bool:
    """Return True where ``ceil_mode`` adds no window: one behind the image is left out."""
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    return room % stride == 0 or (room // stride + 1) * stride >= size + padding


def _indexed(function: Callable[..., Tensor], input: Tensor, key: Any) -> Tensor:
    keys = key if isinstance(key, tuple) else (key,)
    lists = [i for i, k in enumerate(keys) if isinstance(k, list) and _are_places(k)]
    others = [k for i, k in enumerate(keys) if i not in lists]
    if len(lists) != 1 or not all(isinstance(k, slice) or k is ... for k in others):
        return function(input, key)
    (place,) = lists
    picked = function(input, tuple(slice(None) if i == place else k for i, k in enumerate(keys)))
    axis = place - len(keys) if ... in keys[:place] else place
    places = [i % picked.shape[axis] for i in keys[place]]
    return picked.index_select(axis, torch.tensor(places, device=picked.device))


def _rolled(function: Callable[..., Tensor], input: Tensor, shifts: Any, dims: Any = ()) -> Tensor:
    axes = [dims] if isinstance(dims, int) else list(dims)
    sizes = [input.shape[axis] for axis in axes]
    if not axes or not all(isinstance(size, int) for size in sizes):
        return function(input, shifts, dims)
    for axis, size, shift in zip(axes, sizes, of_axes(shifts, len(axes)), strict=True):
        places = torch.tensor([(i - shift) % size for i in range(size)], device=input.device)
        input = input.index_select(axis, places)
    return input


def _are_places(key: list[Any]) -> bool:
    return bool(key) and all(isinstance(i, int) and not isinstance(i, bool) for i in key)


def _adaptive_maxima(
    function: Callable[..., Any], input: Tensor, output_size: Any, return_indices: bool = False
) -> Any:
    axes = _ADAPTIVE_MAXIMA[function]
    given = output_size if isinstance(output_size, tuple | list) else [output_size] * axes
    values = input
    for axis, wanted in zip(range(-axes, 0), given, strict=True):
        size, count = input.shape[axis], wanted or input.shape[axis]
        ends = [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
        windows = [values.narrow(axis, low, high - low) for low, high in ends]
        values = torch.cat([window.amax(axis, keepdim=True) for window in windows], axis)
    if function in _ADAPTIVE_MAXIMA_WITH_PLACES:
        return values, function(input, output_size)[1]
    return values


def _squeeze(function: Callable[..., Tensor], input: Tensor, *dim: Any, **named: Any) -> Tensor:
    if not dim and not named:
        return function(input)
    (given,) = (*dim, *named.values())
    dims = given if isinstance(given, tuple | list) else (given,)
    dims = tuple(d for d in dims if input.shape[d] == 1)
    return function(input, dims) if dims else input


def _extreme(function: Callable[..., Tensor], input: Tensor, *dim: Any, **named: Any) -> Tensor:
    if dim or not {"dim", "axis"}.isdisjoint(named):
        return function(input, *dim, **named)
    return function(input, tuple(range(input.dim())), **named)


def _columns(
    function: Callable[..., Tensor],
    input: Tensor,
    kernel_size: Any,
    dilation: Any = 1,
    padding: Any = 0,
    stride: Any = 1,
) -> Tensor:
    kernel, spread, pad, step = (of_axes(v, 2) for v in (kernel_size, dilation, padding, stride))
    x = F.pad(input, (pad[1], pad[1], pad[0], pad[0]))
    for i in range(2):
        x = x.unfold(input.dim() - 2 + i, spread[i] * (kernel[i] - 1) + 1, step[i])
    x = x[..., :: spread[0], :: spread[1]]  # (..., C, places, places, kernel, kernel)
    return x.movedim((-2, -1), (-4, -3)).flatten(-5, -3).flatten(-2)


_POOLED_AXES = {torch.avg_pool1d: 1, F.avg_pool2d: 2, F.avg_pool3d: 3}
_POOLS: dict[int, Callable[..., nn.Module]] = {
    1: nn.AvgPool1d,
    2: nn.AvgPool2d,
    3: nn.AvgPool3d,
}
_MAXIMA_WITH_PLACES = {getattr(F, f"max_pool{axes}d_with_indices"): axes for axes in (1, 2, 3)}
_MAXIMA = {
    **{getattr(F, f"max_pool{axes}d"): axes for axes in (1, 2, 3)},
    **{getattr(torch, f"max_pool{axes}d"): axes for axes in (1, 2, 3)},
    **_MAXIMA_WITH_PLACES,
}
_ADAPTIVE_MAXIMA_WITH_PLACES = {
    getattr(F, f"adaptive_max_pool{axes}d_with_indices"): axes for axes in (1, 2, 3)
}
_ADAPTIVE_MAXIMA = {
    **{getattr(F, f"adaptive_max_pool{axes}d"): axes for axes in (1, 2, 3)},
    **_ADAPTIVE_MAXIMA_WITH_PLACES,
}
_FORMS: dict[Callable[..., Any], Callable[..., Any]] = {
    **dict.fromkeys(_POOLED_AXES, _average),
    F.interpolate: gather_neighbours,
    F.conv3d: _convolution_3d,
    F.adaptive_avg_pool3d: _adaptive_average_3d,
    **dict.fromkeys(_MAXIMA, _maxima),
    **dict.fromkeys(_ADAPTIVE_MAXIMA, _adaptive_maxima),
    Tensor.__getitem__: _indexed,
    F.unfold: _columns,
    **dict.fromkeys((torch.roll, Tensor.roll), _rolled),
    **dict.fromkeys((torch.squeeze, Tensor.squeeze), _squeeze),
    **dict.fromkeys((torch.amax, torch.amin, Tensor.amax, Tensor.amin), _extreme),
}
