"""Search for the bits of each layer: for a size, or for an accuracy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn
from tqdm import tqdm

from edgeailite.quantization.arithmetic.spec import QuantSpec
from edgeailite.quantization.graph.model import graph_of
from edgeailite.quantization.graph.running import as_batches
from edgeailite.quantization.methods.mixed_precision.choice import choose_bit_widths
from edgeailite.quantization.methods.mixed_precision.result import LayerSensitivity, MixedPrecision
from edgeailite.quantization.methods.mixed_precision.sensitivity import (
    BIT_WIDTHS,
    layer_sensitivity,
)

NUM_BISECTIONS = 6  # the size is found to 1/64 of what lies between
NUM_BATCHES = 8

MakeWrapper = Callable[[nn.Module, MixedPrecision], Any]


def search_bit_widths(
    model: nn.Module,
    make_wrapper: MakeWrapper,
    data: Iterable[Any],
    *,
    max_bytes: int | None = None,
    max_mac_bits: int | None = None,
    evaluate: Callable[[Any], float] | None = None,
    min_metric: float | None = None,
    bit_widths: Sequence[int] = BIT_WIDTHS,
    weight_spec: Callable[[QuantSpec, int], QuantSpec] = QuantSpec.with_bits,
    activations: bool = False,
) -> MixedPrecision:
    """Find the bits of each layer, for a size, for MAC-bits, or for an accuracy after calibration.

    Args:
        model: Float model; not changed.
        make_wrapper: Makes a calibrating wrapper of a model and its bits (at first none).
        data: Batches to measure sensitivity and to calibrate on; of a long loader the first
            8 are taken. Not kept.
        max_bytes: A goal: limit of the bytes of all weights.
        max_mac_bits: A goal, alone or together with `max_bytes`: limit of the sum of all
            multiply-accumulates times the bits of their weights, for one input.
        evaluate: With `min_metric`: gives a wrapper's metric, higher is better.
        min_metric: The goal: the smallest weights with at least this metric, found by bisection.
        bit_widths: Bit widths to choose from.
        weight_spec: Makes the grid of a bit width from a layer's grid.
        activations: The outputs of the layers get the same bits as their weights.

    Returns:
        The choice; its text is a table.

    Raises:
        ValueError: No goal or two that exclude each other, no data, or a budget that is too small.
    """
    has_budget = max_bytes is not None or max_mac_bits is not None
    if has_budget == (min_metric is not None) or (evaluate is None) != (min_metric is None):
        raise ValueError(
            "The search needs a goal: max_bytes, max_mac_bits or both; or min_metric together with "
            "evaluate."
        )
    wrapper = make_wrapper(copy.deepcopy(model), MixedPrecision({}))
    num_inputs = len(graph_of(wrapper.module).find_nodes(op="placeholder"))
    batches = as_batches(data, num_inputs, NUM_BATCHES)
    if activations and batches:
        wrapper.calibrate(batches)
    measured = layer_sensitivity(
        wrapper.module, batches, bit_widths, weight_spec=weight_spec, activations=activations
    )
    layers = tuple(measured)
    if has_budget:
        chosen = choose_bit_widths(measured, max_bytes=max_bytes, max_mac_bits=max_mac_bits)
        return MixedPrecision(chosen, layers, None, activations)
    assert evaluate is not None
    assert min_metric is not None

    def metric_of(chosen: dict[str, int]) -> MixedPrecision:
        found = MixedPrecision(chosen, layers, None, activations)
        calibrated = make_wrapper(copy.deepcopy(model), found).calibrate(batches)
        return MixedPrecision(chosen, layers, float(evaluate(calibrated)), activations)

    return _smallest(measured, metric_of, min_metric)


def _smallest(
    measured: list[LayerSensitivity],
    metric_of: Callable[[dict[str, int]], MixedPrecision],
    min_metric: float,
) -> MixedPrecision:
    """Search by bisection between the narrowest and the widest weights."""
    sizes = [[layer.num_bytes(bits) for bits in layer.errors] for layer in measured]
    low, high = sum(map(min, sizes)), sum(map(max, sizes))
    best = metric_of(choose_bit_widths(measured, max_bytes=high))
    assert best.metric is not None
    if best.metric < min_metric:
        print(  # noqa: T201
            f"edgeailite: even the widest weights reach only {best.metric:.4g} after calibration, "
            f"not {min_metric:.4g}: they are taken. Train the model quantized to gain more."
        )
        return best
    for _ in tqdm(range(NUM_BISECTIONS), "bit widths", leave=False, disable=None):
        middle = (low + high) // 2
        tried = metric_of(choose_bit_widths(measured, max_bytes=middle))
        assert tried.metric is not None
        if tried.metric >= min_metric:
            best, high = tried, min(middle, tried.num_bytes)
        else:
            low = middle
        if high - low <= 1:
            break
    return best
