"""Modules that only collect ranges, from a sample whose size does not grow with the tensor."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from edgeailite.quantization.arithmetic.ops import in_memory_order
from edgeailite.quantization.arithmetic.qparams import activation_qparams, symmetric_scale
from edgeailite.quantization.arithmetic.spec import QuantSpec

SAMPLE_SIZE = 1 << 15
MIN_AVERAGING_WEIGHT = 0.001
_MSE_CANDIDATES = (1.0, 0.5, 0.25, 0.125)
_MSE_CANDIDATES_FREE = tuple(1.0 - 0.05 * i for i in range(16))


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sample(x: Tensor, size: int = SAMPLE_SIZE) -> Tensor:
    """At most about `size` values of `x`, evenly spread over it.

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
    step = max(flat.numel() * world // size, 1) | 1  # odd: out of step with rows and channels
    start = -(dist.get_rank() * flat.numel()) % step if world > 1 else 0
    return flat[start::step].float()


def _largest(values: Tensor, percent: float) -> Tensor:
    """The value that `percent` percent of all values (of all processes) lie above. Shape ``()``."""
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
    """``[low, high]`` that leave `percent` percent of the values outside on each side.

    Args:
        values: Shape ``(n,)``, float32.
        percent: Per side; 0: plain min and max.
        from_zero: The grid starts at zero: `low` is the plain minimum, which costs less.

    Returns:
        Shape ``(2,)``; NaN where a value was NaN or infinite.
    """
    poison = values.sum() * 0.0  # not 0 only if something is not finite; costs no synchronisation
    low = -_largest(-values, 0.0 if from_zero else percent)
    return torch.stack([low, _largest(values, percent)]) + poison


def mse_range(values: Tensor, spec: QuantSpec) -> Tensor:
    """The part of the full range with the least squared error on `values`; shape ``(2,)``."""
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


class RangeObserver(nn.Module):
    """Running ``[min, max]`` of what passes through.

    The n-th batch counts with weight ``max(1 / max(n, 1), 0.001)``: the first ones replace, then
    the cumulative mean, then an exponential average. Under ``torch.distributed`` the range is that
    of the joint batch.

    Args:
        spec: Its ``range_rule`` decides how a batch's range is found; ``fixed_range`` switches
            statistics off.

    State:
        clips_act: Running range, float32, shape ``(2,)``; first ``[-8, 8]`` (``[0, 8]`` unsigned).
            A parameter where the spec's range is learned.
        num_batches_tracked: Batches seen minus one, float32, shape ``()``; first -1.
    """

    clips_act: Tensor
    num_batches_tracked: Tensor

    def __init__(self, spec: QuantSpec) -> None:
        super().__init__()
        self.spec = spec
        self.name = ""
        self.observer_enabled = spec.fixed_range is None
        first = spec.fixed_range or ((0.0, 8.0) if spec.signed is False else (-8.0, 8.0))
        clips = torch.tensor(first, dtype=torch.float32)
        if spec.learned:
            self.clips_act = nn.Parameter(clips)
        else:
            self.register_buffer("clips_act", clips)
        self.register_buffer("num_batches_tracked", torch.tensor(-1.0))

    @property
    def has_range(self) -> bool:
        """Whether the range is fixed or has seen data (reads a value: not for a training step)."""
        return self.spec.fixed_range is not None or float(self.num_batches_tracked) >= 0

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Update the running range with one batch.

        Raises:
            ValueError: A value is NaN or infinite (on CPU at once; elsewhere see
                :meth:`check_finite`).
        """
        batch = self.batch_range(x)
        if batch.device.type == "cpu" and not batch.isfinite().all():
            raise ValueError(self._not_finite_message())
        self.num_batches_tracked += 1
        weight = (1.0 / self.num_batches_tracked.clamp_min(1.0)).clamp_min(MIN_AVERAGING_WEIGHT)
        # First batch: the old content (a placeholder, or NaN from elsewhere) must take no part.
        averaged = torch.where(weight >= 1.0, batch, torch.lerp(self.clips_act, batch, weight))
        self.clips_act.copy_(averaged)

    def batch_range(self, x: Tensor) -> Tensor:
        """``[min, max]`` of one batch by the spec's rule, shape ``(2,)``."""
        rule, percent = self.spec.range_rule, self.spec.range_shrink_percentile
        if rule == "mse":
            return mse_range(sample(x), self.spec)
        if rule == "percentile" and percent > 0:
            return percentile_range(sample(x), percent, from_zero=self.spec.signed is False)
        return percentile_range(in_memory_order(x.detach()).float(), 0.0)

    def check_finite(self) -> None:
        """Raise what :meth:`observe` cannot raise on an accelerator without waiting for it."""
        if not bool(self.clips_act.isfinite().all()):
            raise ValueError(self._not_finite_message())

    def _not_finite_message(self) -> str:
        return (
            f"The activation at '{self.name or type(self).__name__}' holds NaN or infinite values. "
            "Look for them in the input images, in the layers before it, "
            "or lower the learning rate."
        )

    def forward(self, x: Tensor) -> Tensor:
        """Observe in training mode; returns `x` itself."""
        if self.training and self.observer_enabled:
            self.observe(x)
        return x


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
