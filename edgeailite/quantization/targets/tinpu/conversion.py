"""Trained graph to integer graph, for targets with offset, multiplier and shift."""

from __future__ import annotations

import copy

import torch
from torch import fx, nn

from edgeailite.quantization.arithmetic.fixed_point import (
    MAX_SHIFT,
    MULTIPLIER_BITS,
    Requantization,
    multiplier_and_shift,
)
from edgeailite.quantization.arithmetic.rounding import round_to_integer
from edgeailite.quantization.arithmetic.weights import quantize_bias
from edgeailite.quantization.graph.model import GraphModel
from edgeailite.quantization.graph.operations import Kind, operands
from edgeailite.quantization.integer.conversion import Converter, grid_of, without_parameters
from edgeailite.quantization.integer.operators import Grid
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.modules.bias import float_offset
from edgeailite.quantization.modules.layer_calls import LayerCall, layer_call
from edgeailite.quantization.prepare.insert import quantizer_of
from edgeailite.quantization.targets.tinpu.modules import FixedPointAverage, FixedPointBatchNorm
from edgeailite.quantization.targets.tinpu.operators import (
    Clip,
    FixedPointLayer,
    OffsetScaleShift,
    WindowAverage,
)

_SHARING = (Kind.ADD, Kind.CAT)


def convert_fixed_point(model: GraphModel, output_int: bool = True) -> GraphModel:
    """Make the integer graph, every layer of it an integer sum, an offset, a factor and a floor.

    Args:
        model: Prepared by a policy with fixed-point rules
            (:class:`~edgeailite.quantization.arithmetic.spec.FixedPoint`), with ranges that have
            seen data. Not changed.
        output_int: Return the outputs' integers; False: real values.

    Returns:
        A new model, whose values between operators are integers carried in float32.

    Raises:
        ValueError: A layer's factor or sums have no such form; the message names the layer.
    """
    source = copy.deepcopy(model).eval()
    source.classify()
    with torch.no_grad():
        return _FixedPointConverter(source, output_int).run()


class _FixedPointConverter(Converter):
    def __init__(self, model: GraphModel, output_int: bool) -> None:
        super().__init__(model)
        self.output_int = output_int

    def _waits_for_quantizer(self, node: fx.Node) -> bool:
        module, users = self.model.module_of(node), list(node.users)
        if len(users) != 1 or users[0].meta["kind"] is not Kind.QUANTIZER:
            return False
        if node.meta["kind"] in _SHARING:
            return all(self._on_grid(operand) for operand in operands(node))
        if node.meta["kind"] is Kind.LAYER:
            unit = layer_call(self.model, node)
            return unit is not None and self._on_grid(unit.input_node)
        return isinstance(module, FixedPointAverage | FixedPointBatchNorm)

    def _place(self, node: fx.Node) -> None:
        if node.op == "output" and self.output_int:
            self.graph.node_copy(node, self._value)
        else:
            super()._place(node)

    def _place_move(self, node: fx.Node) -> None:
        self._set(node, self._copy(node, self._value), self.grids[node.all_input_nodes[0]])

    def _place_quantizer(self, node: fx.Node) -> None:
        quantizer = self.model.get_submodule(str(node.target))
        assert isinstance(quantizer, FakeQuantize)
        grid, operand = grid_of(quantizer), node.all_input_nodes[0]
        kind = operand.meta["kind"]
        if operand in self.values:
            module: nn.Module = _rescale(self.grids[operand], grid)
            self._set(node, self._call(str(node.target), module, self.values[operand]), grid)
        elif kind is Kind.LAYER:
            unit = layer_call(self.model, operand)
            assert unit is not None
            source = self._grid(unit.input_node)
            layer = _fixed_point_layer(unit, source, grid)
            self._set(node, self._call(unit.path, layer, self.values[unit.input_node]), grid)
        elif kind in _SHARING:
            self._place_sharing(node, operand, grid)
        else:
            self._place_steps(node, operand, grid)

    def _grid(self, node: fx.Node) -> Grid:
        grid = self.grids[node]
        assert grid is not None
        return grid

    def _place_sharing(self, quantizer: fx.Node, node: fx.Node, grid: Grid) -> None:
        """An add or a concat: all operands are multiples of the result's step already."""
        assert all(self._grid(a).scale == grid.scale for a in operands(node))
        integers = self._copy(node, self._value)
        self._set(quantizer, self._call(str(quantizer.target), Clip(grid), integers), grid)

    def _place_steps(self, quantizer: fx.Node, node: fx.Node, grid: Grid) -> None:
        """A batch norm or an average."""
        module, operand = self.model.module_of(node), node.all_input_nodes[0]
        output = self.model.module_of(quantizer)
        assert isinstance(output, FakeQuantize)
        made: nn.Module
        if isinstance(module, FixedPointAverage):
            made = WindowAverage(module.sums, self._grid(operand), grid)
        else:
            assert isinstance(module, FixedPointBatchNorm)
            source = quantizer_of(self.model, operand)
            given = None if source is None else self.model.module_of(source)
            assert given is None or isinstance(given, FakeQuantize)
            steps, _ = module.steps(output, given)
            if given is not None and bool((steps.multiplier.abs() >= 1 << MULTIPLIER_BITS).any()):
                largest = float(steps.factor.abs().max())
                raise ValueError(
                    f"Batch norm '{node.target}' multiplies with up to {largest:.4g}, more than "
                    f"{MULTIPLIER_BITS} bits hold. Is its variance right (calibrate on real data)?"
                )
            made = OffsetScaleShift(steps, grid, module.multiplier_bits)
        self._set(quantizer, self._call(str(node.target), made, self.values[operand]), grid)


def _rescale(source: Grid | None, grid: Grid) -> OffsetScaleShift:
    """From another grid, or from real values (None), to `grid`; all scales are powers of two."""
    unit = 1.0 if source is None else source.scale
    factor = torch.tensor(unit / grid.scale, dtype=torch.float64)
    half = 0.5 / factor if source is None else torch.floor(0.5 / factor)
    if grid.rounding == "floor":  # what made the value has added the half step
        half = torch.zeros_like(half)
    lowest = -MAX_SHIFT if source is None else 0  # what quantizes real values may shift left
    steps = Requantization(
        half.float(), *multiplier_and_shift(factor, MULTIPLIER_BITS, min_shift=lowest)
    )
    return OffsetScaleShift(_checked(steps, factor), grid)


def _checked(steps: Requantization, factor: torch.Tensor) -> Requantization:
    """The steps, if multiplier and shift are exactly the wanted factor.

    Raises:
        ValueError: They are not.
    """
    wrong = (steps.factor.double() != factor) | (steps.multiplier >= 1 << MULTIPLIER_BITS)
    if bool(wrong.any()):
        value = float(factor.reshape(-1)[wrong.reshape(-1)][0])
        raise ValueError(
            f"The factor {value:.4g} between accumulator and output has no multiplier of "
            f"{MULTIPLIER_BITS} bits with a right shift of 0 to 31. Is the output's range right "
            f"(calibrate on real data), or the layer dead (all outputs zero)?"
        )
    return steps


def _fixed_point_layer(unit: LayerCall, source: Grid, grid: Grid) -> FixedPointLayer:
    """The integer layer of a unit whose input lies on `source` and whose output on `grid`."""
    layer, spec, bias_spec = unit.layer, unit.layer.weight_quantizer.spec, unit.layer.bias_spec
    weight, bias, scale = unit.folded()
    integers = round_to_integer(weight / layer.channels(scale, weight), spec.rounding).clamp(
        spec.quant_min, spec.quant_max
    )
    accumulator = source.scale * scale.double()
    factor = accumulator / grid.scale
    if bias_spec.is_float:
        offset = float_offset(bias, scale, unit.output_quantizer).double() / source.scale
    else:
        offset = torch.floor(0.5 / factor)
        if bias is not None:
            rounding = bias_spec.rounding
            offset = offset + quantize_bias(bias, accumulator, layer.bias_spec.limit, rounding)
    try:
        steps = _checked(
            Requantization(offset.float(), *multiplier_and_shift(factor, MULTIPLIER_BITS)), factor
        )
        output = OffsetScaleShift(steps, grid, channels_last=unit.channel_axis == -1)
        made = FixedPointLayer(without_parameters(layer), integers, output, source)
    except ValueError as error:
        raise ValueError(f"Layer '{unit.path}': {error}") from error
    made.layer_path = unit.path
    return made
