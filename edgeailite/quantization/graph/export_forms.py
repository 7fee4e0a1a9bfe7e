"""Functions that torch's ONNX exporter loses an argument of, as others that it writes whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from edgeailite.quantization.graph.nearest import gather_neighbours
from edgeailite.quantization.graph.window_sums import AdaptiveSum, WindowSum


class ExportForms(TorchFunctionMode):
    """While it is entered, some functions are computed by others with the same values.

    * Average pools: the exporter drops ``divisor_override``, and ONNX Runtime's integer kernel
      counts the places of windows that ``ceil_mode`` lets end outside of the image otherwise than
      torch does. Such averages are sums, divided by their areas.
    * Nearest neighbours: see :mod:`~edgeailite.quantization.graph.nearest`.
    * ``conv3d`` without bias: the exporter makes one of a wrong shape.
    * ``AdaptiveAvgPool3d``: the exporter has it for one window alone. It is sums, divided as above.
    * ``squeeze`` of an axis that is longer than 1: the exporter writes a Squeeze all the same.
    * ``amax`` and ``amin`` without axes.
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


_POOLED_AXES = {torch.avg_pool1d: 1, F.avg_pool2d: 2, F.avg_pool3d: 3}
_POOLS: dict[int, Callable[..., nn.Module]] = {
    1: nn.AvgPool1d,
    2: nn.AvgPool2d,
    3: nn.AvgPool3d,
}
_FORMS: dict[Callable[..., Any], Callable[..., Any]] = {
    **dict.fromkeys(_POOLED_AXES, _average),
    F.interpolate: gather_neighbours,
    F.conv3d: _convolution_3d,
    F.adaptive_avg_pool3d: _adaptive_average_3d,
    **dict.fromkeys((torch.squeeze, Tensor.squeeze), _squeeze),
    **dict.fromkeys((torch.amax, torch.amin, Tensor.amax, Tensor.amin), _extreme),
}
