"""Conversion rules of softmax and norms; :mod:`conversion` registers them."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, fx, nn

from edgeailite.quantization.graph.calls import argument, arguments, operands, operation_of
from edgeailite.quantization.graph.model import module_of
from edgeailite.quantization.graph.normalizations import LAYER_NORM
from edgeailite.quantization.graph.running import parameter_value
from edgeailite.quantization.integer.conversion import Converter
from edgeailite.quantization.integer.grid import Grid
from edgeailite.quantization.integer.normalizations import (
    IntegerNormalization,
    IntegerSoftmax,
    length,
    over_length,
    over_root_mean_square,
    standardized,
)


def convert_softmax(converter: Converter, node: fx.Node, quantizer: fx.Node, grid: Grid) -> None:
    """Exponentials by a table, then one division."""
    (operand,) = operands(node)
    softmax = IntegerSoftmax(converter.grid(operand), grid, argument(node, "dim"))
    _place(converter, node, quantizer, softmax)


def convert_norm_of_last_axes(
    converter: Converter, node: fx.Node, quantizer: fx.Node, grid: Grid
) -> None:
    """Layer norm and RMS norm."""
    shape, eps = argument(node, "normalized_shape"), argument(node, "eps")
    norm = IntegerNormalization(
        converter.grid(operands(node)[0]),
        grid,
        standardized if operation_of(node) is LAYER_NORM else over_root_mean_square,
        tuple(range(-1 if isinstance(shape, int) else -len(shape), 0)),
        weight=_parameter(converter, node, "weight"),
        bias=_parameter(converter, node, "bias"),
        eps=torch.finfo(torch.float32).eps if eps is None else float(eps),
    )
    _place(converter, node, quantizer, norm)


def convert_norm_along(converter: Converter, node: fx.Node, quantizer: fx.Node, grid: Grid) -> None:
    """Layer norm and RMS norm along any axes."""
    norm = IntegerNormalization(
        converter.grid(operands(node)[0]),
        grid,
        standardized if argument(node, "centered") else over_root_mean_square,
        argument(node, "dim"),
        weight=_parameter(converter, node, "weight"),
        bias=_parameter(converter, node, "bias"),
        eps=argument(node, "eps"),
    )
    _place(converter, node, quantizer, norm)


def convert_norm_of_images(
    converter: Converter, node: fx.Node, quantizer: fx.Node, grid: Grid
) -> None:
    """Group norm; instance norm is one with a group for each channel."""
    weight, bias = (_parameter(converter, node, name) for name in ("weight", "bias"))
    dims, axes = None, _image_axes(module_of(converter.model, node))
    if axes is not None:  # the batch may be missing
        dims = tuple(range(-axes, 0))
        weight, bias = (
            None if values is None else values.reshape(-1, *[1] * axes) for values in (weight, bias)
        )
    norm = IntegerNormalization(
        converter.grid(operands(node)[0]),
        grid,
        standardized,
        dims,
        arguments(node).get("num_groups"),
        weight,
        bias,
        float(argument(node, "eps")),
    )
    _place(converter, node, quantizer, norm)


def convert_normalize(converter: Converter, node: fx.Node, quantizer: fx.Node, grid: Grid) -> None:
    """Vectors of length 1."""
    source, dims = converter.grid(operands(node)[0]), (argument(node, "dim"),)
    norm = IntegerNormalization(source, grid, over_length, dims, eps=argument(node, "eps") ** 2)
    _place(converter, node, quantizer, norm)


def convert_vector_norm(
    converter: Converter, node: fx.Node, quantizer: fx.Node, grid: Grid
) -> None:
    """Lengths of vectors."""
    source, dims = converter.grid(operands(node)[0]), argument(node, "dim")
    norm = IntegerNormalization(
        source,
        grid,
        partial(length, keepdim=argument(node, "keepdim")),
        (dims,) if isinstance(dims, int) else tuple(dims),
        weight=torch.tensor(source.scale),
    )
    _place(converter, node, quantizer, norm)


def _parameter(converter: Converter, node: fx.Node, name: str) -> Tensor | None:
    value = arguments(node).get(name)
    return parameter_value(converter.model, value) if isinstance(value, fx.Node) else value


def _image_axes(module: nn.Module | None) -> int | None:
    """Axes of an image that an instance norm takes; None for any other call."""
    kinds = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
    return next((n for n, kind in kinds.items() if isinstance(module, kind)), None)


def _place(
    converter: Converter,
    node: fx.Node,
    quantizer: fx.Node,
    module: IntegerNormalization | IntegerSoftmax,
) -> None:
    value = converter.call(str(quantizer.target), module, converter.values[operands(node)[0]])
    converter.set(quantizer, value, module.output_grid)
