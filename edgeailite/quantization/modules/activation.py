"""Activation quantizers: collect a range, simulate its integer grid."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgeailite.quantization.arithmetic.fake_quantize import fake_quantize, in_memory_order
from edgeailite.quantization.arithmetic.learned_range import simulate_learned, with_range_gradient
from edgeailite.quantization.arithmetic.qparams import QParams, activation_qparams
from edgeailite.quantization.arithmetic.ranges import mse_range, percentile_range, sample
from edgeailite.quantization.graph.operations import QUANTIZER

if TYPE_CHECKING:
    from edgeailite.quantization.arithmetic.spec import QuantSpec

MIN_AVERAGING_WEIGHT = 0.001
# What is added in front of a softmax hides a value if it lowers it by so much: grids end there.
MASK_REACH = 1024.0
# Half steps of a softmax's result with 8 bits.
_STEPS_OF_SOFTMAX = 512
_FLAGS = ("observer_enabled", "fake_quant_enabled")
# Batches whose statistics a learned range begins with.
BATCHES_BEFORE_LEARNING = 10


class RangeObserver(nn.Module):
    """Running ``[min, max]`` of what passes through.

    The n-th batch counts with weight ``max(1 / max(n, 1), 0.001)``: the first ones replace, then
    the cumulative mean, then an exponential average. Under ``torch.distributed`` the range is that
    of the joint batch.

    Args:
        spec: Its ``range_rule`` decides how a batch's range is found; ``fixed_range`` switches
            statistics off.

    Attributes:
        averages_ranges: False: the last batch alone counts, for a constant that training moves.

    State:
        clips_act: Running range, float32, shape ``(2,)``; first ``[-8, 8]`` (``[0, 8]`` unsigned).
            A parameter where the spec's range is learned.
        num_batches_tracked: Batches seen minus one, float32, shape ``()``; first -1.
    """

    clips_act: Tensor
    num_batches_tracked: Tensor
    averages_ranges = True

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
        """True if the range is fixed or has seen data; reading it waits for the device."""
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
        if not self.averages_ranges:
            weight = torch.ones_like(weight)
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


class FakeQuantize(RangeObserver):
    """Collect the range of an activation and simulate its integer grid.

    Args:
        spec: Per-tensor spec of the activation.
        bounds: ``(low, high)`` of an activation function that this quantizer absorbed (``(0, 6)``
            of ReLU6), infinite where it has none. They limit the range, and the grid is cut at the
            integers nearest to them. None: the grid alone clips.

    Attributes:
        inplace: Overwrite the input, as ``ReLU(inplace=True)`` does.
        softmax_dim: Axis of a softmax behind, for a sum with a constant, which may be a mask:
            values whose exponentials, all together, are less than half a step of 8 bits do not
            widen the range, and neither do those of rows that are masked as a whole. None: all
            values do.

    State:
        clips_act, num_batches_tracked: See :class:`RangeObserver`.
        clip_high: Upper bound of each channel after equalization, float32, shape ``(C,)``; absent
            otherwise.
        own_bits: Bits of an integer, uint8, shape ``()``, where they were chosen for this one;
            absent otherwise.
        observer_enabled, fake_quant_enabled: The two flags, uint8. Missing ones (historical
            checkpoints) leave the flags as they are.

    Shape:
        Any, out the same.
    """

    clip_high: Tensor | None

    def __init__(self, spec: QuantSpec, bounds: tuple[float, float] | None = None) -> None:
        super().__init__(spec)
        self.activation_bounds = bounds
        self.register_buffer("clip_high", None)
        self.inplace = False
        self.softmax_dim: int | None = None
        self.has_own_bits = False
        self.fake_quant_enabled = True
        self._partners: list[FakeQuantize] = []
        self._batches_to_observe = BATCHES_BEFORE_LEARNING

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Bounds of the absorbed activation function, without an upper one that is per channel."""
        if self.clip_high is None or self.activation_bounds is None:
            return self.activation_bounds
        return self.activation_bounds[0], math.inf

    @property
    def has_upper_bound(self) -> bool:
        """True if the absorbed activation function clips large values."""
        return self.activation_bounds is not None and math.isfinite(self.activation_bounds[1])

    def upper_bounds(self, num_channels: int) -> Tensor:
        """Upper bound of each channel, float32, shape ``(C,)``."""
        if self.clip_high is not None:
            return self.clip_high
        assert self.activation_bounds is not None
        return torch.full((num_channels,), self.activation_bounds[1], device=self.clips_act.device)

    def require_range(self, path: str) -> None:
        """Raise a ValueError where the range at `path` is a placeholder."""
        if not self.has_range:
            raise ValueError(
                f"The activation range at '{path}' has never seen data, so there are no integers "
                "to convert or export to. Run data through the wrapper first: train it, or "
                "calibrate(loader); or load a quantized checkpoint into .module."
            )

    def batch_range(self, x: Tensor) -> Tensor:
        """``[min, max]`` of one batch behind the absorbed bounds, shape ``(2,)``."""
        x = self._without_infinity(x)
        if self.softmax_dim is not None:
            reach = math.log(x.shape[self.softmax_dim] * _STEPS_OF_SOFTMAX)
            top = x.amax(self.softmax_dim, keepdim=True)
            is_masked = top < top.amax() - MASK_REACH / 2
            x = torch.where(is_masked, top.amax(), torch.maximum(x, top - reach))
        if self.bounds is None:
            return super().batch_range(x)
        if self.spec.range_rule == "mse":
            x = sample(x).clamp(*self.bounds)
        return super().batch_range(x).clamp(*self.bounds)

    def _without_infinity(self, x: Tensor) -> Tensor:
        """Cut a mask, which may hold ``-inf``, off where its grid ends at the latest."""
        if self.averages_ranges or self.spec.range_max is None:
            return x
        return x.clamp_min(-self.spec.range_max)

    def clips_inside(self) -> bool:
        """Return True if a bound per channel lies within the grid, so that it has an effect."""
        if self.clip_high is None:
            return False
        grid = self.qparams()
        top = (grid.quant_max - grid.zero_point - 0.5) * grid.scale
        return bool((self.clip_high < top).any())

    def _below_upper_bounds(self, x: Tensor) -> Tensor:
        if self.clip_high is None:
            return x
        return torch.minimum(x, self.clip_high.reshape(-1, *[1] * (x.dim() - 2)))

    def qparams(self) -> QParams:
        """Grid in use, from the present ``clips_act``; :meth:`limits` may cut it further."""
        grid = self._own_qparams()
        for partner in self._partners:
            scale = partner._own_qparams().scale.to(grid.scale.device)
            if partner.spec.fixed_range is None:
                scale = torch.where(partner.num_batches_tracked >= 0, scale, grid.scale)
            grid = grid._replace(scale=torch.maximum(grid.scale, scale))
        return grid

    def _own_qparams(self) -> QParams:
        return activation_qparams(self._clips().detach(), self.spec)

    def _clips(self) -> Tensor:
        return self.clips_act if self.bounds is None else self.clips_act.clamp(*self.bounds)

    @staticmethod
    def share_scale(members: Iterable[FakeQuantize]) -> None:
        """Let quantizers use the coarsest of their scales from now on.

        Args:
            members: Symmetric ones; whatever they share with others already joins the group.
        """
        group: dict[int, FakeQuantize] = {}
        for member in members:
            group |= {id(q): q for q in (member, *member._partners)}
        for quantizer in group.values():
            quantizer._partners = [q for q in group.values() if q is not quantizer]

    def choose_bits(self, bits: int) -> None:
        """Give this quantizer a bit width of its own."""
        self.has_own_bits, self.spec = True, self.spec.with_bits(bits)

    def limits(self, grid: QParams) -> tuple[Tensor, Tensor]:
        """Smallest and largest integer after the absorbed bounds: ``round(bound / s) + z``."""
        assert self.bounds is not None
        low, high = (torch.round(b / grid.scale) + grid.zero_point for b in self.bounds)
        limits = grid.quant_min, grid.quant_max
        return low.clamp(*limits), high.clamp(*limits)

    def forward(self, x: Tensor) -> Tensor:
        """Simulate the grid; in training mode, with the observer on, update the range first."""
        if self.training and self.spec.learned and torch.is_grad_enabled():
            return self._learn(x)
        if self.training and self.observer_enabled:
            self.observe(x)
        if not self.fake_quant_enabled:
            return self.float_activation(x)
        x = self._below_upper_bounds(x)
        grid = self.qparams()
        low: int | Tensor = grid.quant_min
        high: int | Tensor = grid.quant_max
        if self.bounds is not None:
            low, high = self.limits(grid)
        return fake_quantize(
            x, grid.scale, grid.zero_point, low, high, self.spec.rounding, self.inplace
        )

    def _learn(self, x: Tensor) -> Tensor:
        """:meth:`forward` where the gradient moves the range, once statistics have begun it."""
        rate = 1.0 if self.observer_enabled else 0.0  # 0 is a gradient as well: DDP waits for it
        if self.observer_enabled and self._batches_to_observe > 0:
            self.observe(x)
            self._batches_to_observe -= 1
            rate = 0.0
        if not self.fake_quant_enabled:
            return self.float_activation(x)
        x, clips = self._below_upper_bounds(x), self._clips()
        x = x if self.bounds is None else x.clamp(*self.bounds)
        grid = self.qparams()
        if self._partners:
            # The scale of a coarser partner is not this one's to move.
            is_own = self._own_qparams().scale >= grid.scale
            clips = torch.where(is_own, clips, clips.detach())
        scale, zero_point = with_range_gradient(grid, clips, self.spec)
        return simulate_learned(x, scale, zero_point, self.spec, x[0].numel(), rate)

    def train(self, mode: bool = True) -> FakeQuantize:
        """Training mode; a range that has seen enough data is learned from the first batch on."""
        if mode and self.spec.learned:
            seen = int(self.num_batches_tracked) + 1
            self._batches_to_observe = BATCHES_BEFORE_LEARNING - seen
        super().train(mode)
        return self

    def float_activation(self, x: Tensor) -> Tensor:
        """Apply the activation function of the float model that this quantizer absorbed."""
        x = self._without_infinity(self._below_upper_bounds(x))
        if self.bounds is not None:
            return x.clamp(*self.bounds)
        return torch.relu(x) if self.spec.signed is False else x

    def extra_repr(self) -> str:
        """Describe the spec in a few words."""
        sign = {True: "signed", False: "unsigned", None: "sign by statistics"}[self.spec.signed]
        scale = "power of two" if self.spec.power_of_two else "free scale"
        return f"{self.spec.bit_width} bit, {sign}, {scale}, {self.spec.rounding}"

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for flag in _FLAGS:
            destination[prefix + flag] = torch.tensor(getattr(self, flag), dtype=torch.uint8)
        if self.has_own_bits:
            destination[prefix + "own_bits"] = torch.tensor(self.spec.bit_width, dtype=torch.uint8)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        *args: Any,
    ) -> None:
        """Missing quantizer state is no error: a float checkpoint loads with ``strict=True``."""
        given = state_dict.get(f"{prefix}clip_high")
        self.clip_high = None if given is None else given.to(self.clips_act)
        own_missing: list[str] = []
        flags = {f: state_dict[prefix + f] for f in _FLAGS if prefix + f in state_dict}
        if prefix + "own_bits" in state_dict:
            self.choose_bits(int(state_dict[prefix + "own_bits"]))
        own = {prefix + name for name in (*_FLAGS, "own_bits")}
        super()._load_from_state_dict(
            {k: v for k, v in state_dict.items() if k not in own},
            prefix,
            local_metadata,
            strict,
            own_missing,
            *args,
        )
        for name, value in flags.items():
            setattr(self, name, bool(value))
        self._restore_fixed_range(state_dict, prefix, flags)

    def _restore_fixed_range(
        self, state_dict: dict[str, Any], prefix: str, flags: dict[str, Tensor]
    ) -> None:
        """Keep the range of a clamp fixed that earlier versions did not find by statistics."""
        clips, seen = (state_dict.get(prefix + n) for n in ("clips_act", "num_batches_tracked"))
        bounds = self.activation_bounds
        if bounds is None or clips is None or seen is None or flags.get("observer_enabled"):
            return
        if seen < 0 and clips.tolist() == torch.tensor(bounds, dtype=torch.float32).tolist():
            self.spec = replace(self.spec, fixed_range=bounds, learned=False)
            self.observer_enabled = False


QUANTIZER.register(modules=(FakeQuantize,))
