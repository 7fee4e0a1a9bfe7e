"""Runs of the float and of the quantized model, with a look at the values of some nodes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from edgeailite.quantization.arithmetic.ranges import sample
from edgeailite.quantization.graph.model import module_of
from edgeailite.quantization.graph.modes import in_mode
from edgeailite.quantization.graph.running import GraphRunner
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.modules.layer_calls import added_half_scale, float_arithmetic
from edgeailite.quantization.report.statistics import Statistics

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel

Limits = dict[fx.Node, tuple[float, float]]


def measure(
    model: GraphModel,
    places: list[fx.Node],
    limits: Limits,
    batches: Iterable[Tensor | tuple[Tensor, ...]],
) -> tuple[dict[fx.Node, Statistics], int]:
    """Run data through the float and through the quantized model.

    Args:
        model: Prepared; it stays as it is.
        places: Nodes to measure; each gives one tensor.
        limits: Ends of the grids of those that are quantizers.
        batches: Inputs of the model; a tuple for several.

    Returns:
        The statistics of each place (none without data), and the number of inputs.

    Raises:
        ValueError: A float value is NaN or infinite.
    """
    found = {node: Statistics() for node in places}
    num_inputs = 0
    with torch.no_grad(), in_mode(model, training=False):
        for batch in batches:
            inputs = batch if isinstance(batch, tuple) else (batch,)
            num_inputs += inputs[0].shape[0]
            comparison = _Comparison(model, found, limits)
            with float_arithmetic(model):
                GraphRunner(model, comparison.see_float).run(*inputs)
            runner = GraphRunner(model, comparison.see_quantized, comparison.see_arriving)
            runner.run(*inputs)
    return {node: s for node, s in found.items() if s.count > 0}, num_inputs


class _Comparison:
    """Comparison of the float and the quantized model on one batch.

    Args:
        model: Prepared model.
        found: Statistics to add to, by place.
        limits: Ends of the grids of quantizers.
    """

    def __init__(self, model: GraphModel, found: dict[fx.Node, Statistics], limits: Limits) -> None:
        self.model, self.found, self.limits = model, found, limits
        self.samples: dict[fx.Node, Tensor] = {}
        self.arriving: dict[fx.Node, Tensor] = {}

    def see_float(self, node: fx.Node, value: Any) -> None:
        """Add a value of the float model, and keep a sample of it."""
        if node not in self.found:
            return
        if not bool(value.isfinite().all()):
            raise ValueError(
                f"The float values at '{node.target}' hold NaN or infinite ones on this data. "
                "Look for them in the inputs of the report, or in the layers before it."
            )
        statistics, limits = self.found[node], self.limits.get(node)
        statistics.add_float(value, limits)
        self.samples[node] = _sampled(value)
        if limits is not None:
            statistics.keep(self.samples[node])

    def see_arriving(self, node: fx.Node, values: list[Any]) -> None:
        """Keep a sample of a quantizer's input, which the quantizer may overwrite."""
        quantizer = module_of(self.model, node) if node in self.found else None
        if isinstance(quantizer, FakeQuantize):
            arriving = _sampled(values[0]) - added_half_scale(quantizer)
            self.arriving[node] = quantizer.float_activation(arriving)

    def see_quantized(self, node: fx.Node, value: Any) -> None:
        """Compare a value with the float one, that of a quantizer also with its input."""
        if node not in self.found:
            return
        if node in self.arriving:
            self.found[node].add_own_error(self.arriving.pop(node), _sampled(value))
        half = added_half_scale(self._quantizer_behind(node))
        self.found[node].add_error(self.samples.pop(node), _sampled(value) - half)

    def _quantizer_behind(self, node: fx.Node) -> FakeQuantize | None:
        """Quantizer for which a layer adds half a scale to its output."""
        reference = node.kwargs.get("output_quantizer")
        if not isinstance(reference, fx.Node):
            return None
        behind = self.model.get_submodule(str(reference.target))
        return behind if isinstance(behind, FakeQuantize) else None


def _sampled(x: Tensor) -> Tensor:
    """Sample of its own memory, which a later operation of the model does not overwrite."""
    return sample(x.contiguous()).clone()
