"""Ranges of activations and weights, from a sample whose size does not grow with the tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from edgeailite.quantization.arithmetic.fake_quantize import in_memory_order
from edgeailite.quantization.arithmetic.qparams import activation_qparams, symmetric_scale

if TYPE_CHECKING:
    from edgeailite.quantization.arithmetic.spec import QuantSpec

SAMPLE_SIZE = 1 << 15
_MSE_CANDIDATES = (1.0, 0.5, 0.25, 0.125)
_MSE_CANDIDATES_FREE = tuple(1.0 - 0.05 * i for i in range(16))


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sample(x: Tensor, size: int = SAMPLE_SIZE) -> Tensor:
    """Take at most about `size` values of `x`, evenly spread over it.

    With several processes the samples together are the one that a single process takes of the
    joint batch.

    Args:
        x: Any shape.
        size: Number of values, over all processes, from which on only every n-th is taken.

    Returns:
        float32, shape ``(n,)``.
    """
    flat = in_memory_order(x.detach())
    world = _world_size()
    stride = max(flat.numel() * world // size, 1) | 1  # odd: shares no period with most rows
    start = -(dist.get_rank() * flat.numel()) % stride if world > 1 else 0
    return flat[start::stride].float()


def _largest(values: Tensor, percent: float) -> Tensor:
    """Value below the top `percent` percent of all values (of all processes); shape ``()``."""
    world = _world_size()
    count = torch.tensor(values.numel(), device=values.device)
    if world > 1:
        dist.all_reduce(count)
    skip = int(int(count) * percent / 100) if world > 1 else int(values.numel() * percent / 100)
    if skip:
        top = torch.topk(values, min(skip + 1, values.numel()), sorted=True).values
    else:
        top = values.amax().reshape(1)
    if world > 1:
        padded = torch.full((skip + 1,), -torch.inf, device=values.device)
        padded[: top.numel()] = top
        gathered = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(gathered, padded)
        top = torch.topk(torch.cat(gathered), skip + 1, sorted=True).values
    return top[-1]


def percentile_range(values: Tensor, percent: float, from_zero: bool = False) -> Tensor:
    """Range ``[low, high]`` that leaves `percent` percent of the values outside on each side.

    Args:
        values: Shape ``(n,)``, float32.
        percent: Per side; 0: plain min and max.
        from_zero: The grid starts at zero: `low` is the plain minimum, which costs less.

    Returns:
        Shape ``(2,)``; NaN where a value was NaN or infinite.
    """
    if percent == 0:
        return _full_range(values)
    poison = values.sum() * 0.0  # not 0 only if something is not finite; costs no synchronisation
    low = -_largest(-values, 0.0 if from_zero else percent)
    return torch.stack([low, _largest(values, percent)]) + poison


def _full_range(values: Tensor) -> Tensor:
    """Smallest and largest value of all processes, in one pass; NaN where there is one."""
    low, high = torch.aminmax(values)
    ends = torch.stack([-low, high])
    if _world_size() > 1:
        dist.all_reduce(ends, dist.ReduceOp.MAX)
    return ends * torch.tensor([-1.0, 1.0], device=ends.device)


def mse_range(values: Tensor, spec: QuantSpec) -> Tensor:
    """Part of the full range with the least squared error on `values`; shape ``(2,)``."""
    full = percentile_range(values, 0.0)
    candidates = _MSE_CANDIDATES if spec.power_of_two else _MSE_CANDIDATES_FREE
    ranges = torch.stack([full * c for c in candidates])
    errors = []
    for clips in ranges:
        scale, zero_point, quant_min, quant_max = activation_qparams(clips, spec)
        q = (torch.round(values / scale) + zero_point).clamp(quant_min, quant_max)
        target = values.clamp_min(0.0) if spec.signed is False else values
        errors.append(((q - zero_point) * scale - target).square().mean())
    error = torch.stack(errors)
    if _world_size() > 1:
        dist.all_reduce(error)
    return ranges[error.argmin()]


def weight_max_abs(rows: Tensor, spec: QuantSpec) -> Tensor:
    """Largest magnitude of each output channel's weights, by the spec's range rule.

    Args:
        rows: Weights of one output channel a row, shape ``(C, n)``.
        spec: ``percentile`` leaves ``range_shrink_percentile`` percent of the magnitudes outside
            (of the channel's, or of the tensor's for a per-tensor spec); ``mse`` has the least
            squared error.

    Returns:
        Shape ``(C,)``.
    """
    if spec.range_rule == "min_max":
        return torch.linalg.vector_norm(rows, torch.inf, dim=1)
    magnitudes = rows.detach().abs()
    if spec.granularity == "per_tensor":
        magnitudes = magnitudes.reshape(1, -1)
    if spec.range_rule == "percentile":
        skip = int(magnitudes.shape[1] * spec.range_shrink_percentile / 100)
        found = torch.topk(magnitudes, skip + 1, dim=1).values[:, -1]
    else:
        found = _least_squares_max_abs(magnitudes, spec)
    return found.expand(rows.shape[0])


def _least_squares_max_abs(magnitudes: Tensor, spec: QuantSpec) -> Tensor:
    """Each row's limit: the candidate with the least squared error; shape ``(rows,)``."""
    full = magnitudes.amax(dim=1)
    candidates = _MSE_CANDIDATES if spec.power_of_two else _MSE_CANDIDATES_FREE
    limits = torch.stack([full * c for c in candidates])
    errors = []
    for limit in limits:
        scale = symmetric_scale(limit, spec)[:, None]
        rounded = torch.round(magnitudes / scale).clamp_max(spec.quant_max) * scale
        errors.append((rounded - magnitudes).square().mean(dim=1))
    best = torch.stack(errors).argmin(dim=0, keepdim=True)
    return limits.gather(0, best)[0]
