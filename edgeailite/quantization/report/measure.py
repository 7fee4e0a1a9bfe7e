"""What values do on data: streamed over the batches, memory does not grow with them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgeailite.quantization.arithmetic.ranges import SAMPLE_SIZE, sample
from edgeailite.quantization.arithmetic.sqnr import decibel, signal_and_noise
from edgeailite.quantization.graph.model import GraphModel
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.modules.layer_calls import added_half_scale, float_arithmetic
from edgeailite.quantization.report.entries import Histogram

NUM_BINS = 64
PERCENTILE = 0.999


def histogram(values: Tensor, low: float, high: float, num_bins: int = NUM_BINS) -> Histogram:
    """Histogram of `values` from `low` to `high`; the outermost bins take what lies beyond."""
    if not low < high:
        low, high = low - 0.5, high + 0.5
    values = values.detach().float().cpu().flatten().clamp(low, high)
    counts = torch.histc(values, bins=num_bins, min=low, max=high)
    return Histogram(low, high, [int(c) for c in counts.tolist()])


def _sampled(x: Tensor) -> Tensor:
    """A sample of its own memory: what the model overwrites later does not change it."""
    return sample(x.contiguous()).clone()


class Statistics:
    """What one place of the graph has seen so far.

    Attributes:
        low: Smallest float value of all.
        high: Largest float value of all.
        count: Number of float values.
        num_clipped: How many of them lay outside of the grid.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.count = self.num_clipped = 0
        self._signal = self._noise = self._own_signal = self._own_noise = 0.0
        self._sample: list[Tensor] = []
        self._stride = 1

    @property
    def sqnr(self) -> float:
        """Of the quantized against the float model, in dB."""
        return decibel(self._signal, self._noise)

    @property
    def own_sqnr(self) -> float:
        """Of what arrives against itself on the grid, in dB."""
        return decibel(self._own_signal, self._own_noise)

    @property
    def percentile(self) -> float:
        """What :data:`PERCENTILE` of the float values stay below in magnitude."""
        magnitudes = torch.cat(self._sample).abs()
        return float(magnitudes.sort().values[math.ceil(PERCENTILE * magnitudes.numel()) - 1])

    def add_float(self, values: Tensor, limits: tuple[float, float] | None) -> None:
        """One batch of the float model's values; `limits` are those of the grid, for quantizers."""
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        self.count += values.numel()
        if limits is not None:
            outside = (values < limits[0]) | (values > limits[1])
            self.num_clipped += int(outside.sum())

    def keep(self, values: Tensor) -> None:
        """Remember a sample of one batch; when it gets too large, all batches are thinned alike."""
        self._sample.append(values[:: self._stride].cpu())
        while sum(s.numel() for s in self._sample) > 2 * SAMPLE_SIZE:
            self._stride *= 2
            self._sample = [torch.cat(self._sample)[::2]]

    def add_error(self, reference: Tensor, values: Tensor) -> None:
        """One batch's sample of the float and of the quantized model."""
        signal, noise = signal_and_noise(reference, values)
        self._signal, self._noise = self._signal + signal, self._noise + noise

    def add_own_error(self, arriving: Tensor, values: Tensor) -> None:
        """One batch's sample before and behind a grid."""
        signal, noise = signal_and_noise(arriving, values)
        self._own_signal, self._own_noise = self._own_signal + signal, self._own_noise + noise

    def histogram(self, limits: tuple[float, float]) -> Histogram:
        """Over the data and the grid, but at most a grid's width beyond the grid."""
        low, high = limits
        width = high - low
        window = min(low, max(self.low, low - width)), max(high, min(self.high, high + width))
        return histogram(torch.cat(self._sample), *window)


class _Pass(fx.Interpreter):
    """Run the graph and look at the values of some nodes."""

    def __init__(self, model: GraphModel, found: dict[fx.Node, Statistics]) -> None:
        super().__init__(model, graph=model.graph)
        self.extra_traceback = False
        self.found = found

    def quantizer(self, node: fx.Node) -> FakeQuantize | None:
        """The quantizer that a node calls, if it calls one."""
        module = self.submodules.get(str(node.target)) if node.op == "call_module" else None
        return module if isinstance(module, FakeQuantize) else None


class _FloatPass(_Pass):
    """The float model: what the values are; the quantized pass is compared with its `samples`."""

    def __init__(
        self, model: GraphModel, found: dict[fx.Node, Statistics],
        limits: dict[fx.Node, tuple[float, float]],
    ) -> None:  # fmt: skip
        super().__init__(model, found)
        self.limits = limits
        self.samples: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node; remember a sample of its value."""
        value = super().run_node(n)
        if n in self.found:
            if not bool(value.isfinite().all()):
                raise ValueError(
                    f"The float values at '{n.target}' hold NaN or infinite ones on this data. "
                    "Look for them in the inputs of the report, or in the layers before it."
                )
            statistics, limits = self.found[n], self.limits.get(n)
            statistics.add_float(value, limits)
            self.samples[n] = _sampled(value)
            if limits is not None:
                statistics.keep(self.samples[n])
        return value


class _QuantizedPass(_Pass):
    """The simulation: how far the values are from those of the float model."""

    def __init__(
        self, model: GraphModel, found: dict[fx.Node, Statistics], samples: dict[fx.Node, Tensor]
    ) -> None:
        super().__init__(model, found)
        self.samples = samples

    def run_node(self, n: fx.Node) -> Any:
        """Run one node; compare its value with the float one, a grid's also with what arrives."""
        quantizer = self.quantizer(n) if n in self.found else None
        if quantizer is None:
            value = super().run_node(n)
        else:  # it may overwrite its input
            sample = _sampled(self.env[n.all_input_nodes[0]])
            arriving = quantizer.float_activation(sample - added_half_scale(quantizer))
            value = super().run_node(n)
            self.found[n].add_own_error(arriving, _sampled(value))
        if n in self.found:
            half = added_half_scale(self._quantizer_behind(n))
            self.found[n].add_error(self.samples.pop(n), _sampled(value) - half)
        return value

    def _quantizer_behind(self, n: fx.Node) -> FakeQuantize | None:
        """The quantizer for which a layer adds half a step."""
        reference = n.kwargs.get("output_quantizer")
        behind = self.submodules[str(reference.target)] if isinstance(reference, fx.Node) else None
        return behind if isinstance(behind, FakeQuantize) else None


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Inside, all of `model` is in evaluation mode."""
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def measure(
    model: GraphModel,
    places: list[fx.Node],
    limits: dict[fx.Node, tuple[float, float]],
    batches: Iterable[Tensor | tuple[Tensor, ...]],
) -> tuple[dict[fx.Node, Statistics], int]:
    """Run data through the float and through the quantized model.

    Args:
        model: Prepared; it stays as it is.
        places: Nodes whose values are looked at; each gives one tensor.
        limits: For those that are quantizers, the ends of their grids.
        batches: Inputs of the model; a tuple for several.

    Returns:
        The statistics of each place (none without data), and how many inputs were run.

    Raises:
        ValueError: A float value is NaN or infinite.
    """
    found = {node: Statistics() for node in places}
    num_inputs = 0
    with torch.no_grad(), _evaluation(model):
        for batch in batches:
            inputs = batch if isinstance(batch, tuple) else (batch,)
            num_inputs += inputs[0].shape[0]
            float_pass = _FloatPass(model, found, limits)
            with float_arithmetic(model):
                float_pass.run(*inputs)
            _QuantizedPass(model, found, float_pass.samples).run(*inputs)
    return {node: s for node, s in found.items() if s.count > 0}, num_inputs
