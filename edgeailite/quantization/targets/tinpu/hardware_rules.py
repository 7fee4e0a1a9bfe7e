"""Hardware linter: rules of TI's NPU that a converted model breaks.

The NPU is on F28P55x, AM13E2x and MSPM0G5187; see the device's documentation.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgeailite.quantization.graph.calls import argument, operation_of
from edgeailite.quantization.graph.model import GraphModel, graph_of, module_of
from edgeailite.quantization.graph.moves import MAX_POOL
from edgeailite.quantization.graph.patterns import call_name
from edgeailite.quantization.graph.running import value_shapes
from edgeailite.quantization.graph.twins import original_type
from edgeailite.quantization.graph.variants import contains_node
from edgeailite.quantization.graph.window_sums import Mean
from edgeailite.quantization.integer.grid import Dequantize, IntegerOperator
from edgeailite.quantization.integer.normalizations import IntegerSoftmax
from edgeailite.quantization.integer.table import IntegerTable
from edgeailite.quantization.targets.tinpu.operators import (
    OffsetScaleShiftLayer,
    OffsetScaleShiftProduct,
    WindowAverage,
)

_ON_THE_CPU = (IntegerTable, OffsetScaleShiftProduct, IntegerSoftmax)
FIRST_CHANNELS, CHANNEL_MULTIPLE = 1, 4
FIRST_KERNEL_WIDTHS = range(1, 9)
STRIDES = ((1, 1), (2, 1), (2, 2))
POOL_SIDES = range(1, 5)
MIN_LINEAR_INPUTS = {8: 16, 4: 8, 2: 8}
OFFSET_BITS = {8: 24, 4: 16, 2: 16}
OPERATIONS = "convolutions, linear layers, batch norm, pooling, ReLU, add, concat and reshaping"


@dataclass(frozen=True)
class Finding:
    """A rule that an operation breaks.

    Attributes:
        layer: Path of the operation.
        rule: What the rule is about.
        given: What the operation has.
        allowed: What the NPU has.
        advice: What to change.
    """

    layer: str
    rule: str
    given: str
    allowed: str
    advice: str

    def __str__(self) -> str:
        return (
            f"'{self.layer}': {self.rule} is {self.given}; the NPU computes {self.allowed}. "
            f"{self.advice}"
        )


def check_hardware_rules(
    converted: nn.Module, example_input: Tensor | Sequence[Tensor], strict: bool = False
) -> list[Finding]:
    """Compare a model with what TI's NPU computes; warn of each difference.

    Args:
        converted: What a TINPU wrapper's ``convert()`` returned, or its ``.module``.
        example_input: Input, or inputs, of the shape the model is used with.
        strict: Raise instead of warning.

    Returns:
        The findings, in the order of the graph.

    Raises:
        ValueError: `strict`, and there are findings; the example does not pass through the model.
    """
    model: Any = converted if isinstance(converted, GraphModel) else converted.module
    inputs = (example_input,) if isinstance(example_input, Tensor) else tuple(example_input)
    findings = list(_findings(model, value_shapes(model, [x[:1] for x in inputs])))
    if strict and findings:
        listed = "\n".join(f"  {finding}" for finding in findings)
        raise ValueError(f"{len(findings)} things that the NPU does not compute:\n{listed}")
    for finding in findings:
        warnings.warn(str(finding), stacklevel=2)
    return findings


def operations_of_the_cpu(converted: GraphModel) -> list[tuple[str, str]]:
    """List operations on integers that the NPU does not have: path, and what it is."""
    found = [m for m in converted.modules() if isinstance(m, _ON_THE_CPU)]
    return [(_path(module), _kind(module)) for module in found]


def _findings(model: GraphModel, shapes: dict[fx.Node, torch.Size]) -> Iterator[Finding]:
    is_first = True
    for node in graph_of(model).nodes:
        module = module_of(model, node)
        if isinstance(module, OffsetScaleShiftLayer):
            if module.weight.dim() == 2:
                yield from _linear(module)
            else:
                yield from _convolution(module, is_first)
                is_first = False
            yield from _offsets(module)
        elif isinstance(module, WindowAverage):
            yield from _average(module, shapes[node.all_input_nodes[0]])
        elif isinstance(module, _ON_THE_CPU):
            advice = "It runs on the CPU, in integers."
            yield Finding(_path(module), "the operation", _kind(module), OPERATIONS, advice)
        elif isinstance(module, Dequantize):
            yield from _float_operations(model, node)
        elif operation_of(node) is MAX_POOL:
            yield from _max_pool(node, shapes[node.all_input_nodes[0]])


def _sides(value: Any) -> tuple[int, int]:
    """Height and width; a time series has width 1."""
    if isinstance(value, int):
        return value, value
    return (int(value[0]), int(value[1]) if len(value) > 1 else 1)


def _convolution(layer: OffsetScaleShiftLayer, is_first: bool) -> Iterator[Finding]:
    operation, path = layer.operation, layer.layer_path
    weight, groups = layer.weight, operation.num_groups
    inputs = weight.shape[0] if operation.is_transposed else weight.shape[1] * groups
    outputs = operation.rows(weight).shape[0]
    if is_first:
        yield from _first_convolution(layer, inputs)
    channels = {"output": outputs} if is_first else {"input": inputs, "output": outputs}
    for side, count in channels.items():
        if count % CHANNEL_MULTIPLE:
            better = -(-count // CHANNEL_MULTIPLE) * CHANNEL_MULTIPLE
            yield Finding(
                path,
                f"the number of {side} channels",
                str(count),
                f"multiples of {CHANNEL_MULTIPLE}",
                f"Use {better}.",
            )
    stride = _sides(operation.stride)
    if stride not in STRIDES:
        yield Finding(
            path,
            "the stride",
            str(stride),
            ", ".join(map(str, STRIDES)),
            "Reduce by a pooling, or by two layers.",
        )


def _first_convolution(layer: OffsetScaleShiftLayer, inputs: int) -> Iterator[Finding]:
    path = layer.layer_path
    if inputs != FIRST_CHANNELS:
        yield Finding(
            path,
            "the number of the first convolution's input channels",
            str(inputs),
            str(FIRST_CHANNELS),
            "Lay the channels along the height of the input.",
        )
    width = layer.weight.shape[-1]
    if width not in FIRST_KERNEL_WIDTHS:
        yield Finding(
            path,
            "the first convolution's kernel width",
            str(width),
            "1 to 8",
            "Use a narrower kernel.",
        )


def _linear(layer: OffsetScaleShiftLayer) -> Iterator[Finding]:
    count, bits = layer.weight.shape[1], layer.weight_bits
    least = MIN_LINEAR_INPUTS[bits]
    if count < least:
        yield Finding(
            layer.layer_path,
            "the number of a linear layer's inputs",
            str(count),
            f"at least {least} ({bits}-bit weights)",
            "Use more features in front of it.",
        )


def _offsets(layer: OffsetScaleShiftLayer) -> Iterator[Finding]:
    bits = OFFSET_BITS[layer.weight_bits]
    largest = float(layer.output.offset.abs().max())
    if largest >= 1 << (bits - 1):
        yield Finding(
            layer.layer_path,
            "the largest offset (bias and half an output scale)",
            f"{largest:.0f}",
            f"{bits} bits ({layer.weight_bits}-bit weights)",
            "Use more weight bits, or train with weight decay on the biases.",
        )
    if not bool((layer.output.offset == torch.round(layer.output.offset)).all()):
        yield Finding(
            layer.layer_path,
            "the offset",
            "a float (float_ops has 'fb')",
            "integers",
            "Leave 'fb' out of float_ops.",
        )


def _average(module: WindowAverage, shape: torch.Size) -> Iterator[Finding]:
    area = float(module.sums.areas(shape).max())
    average = module.sums.average
    is_global = isinstance(average, Mean) or hasattr(average, "output_size")
    if is_global and area <= 2:
        yield Finding(
            module.quantizer_path.removesuffix(".activation_q"),
            "the averaged area",
            f"{area:.0f} values",
            "global averages of more than 2",
            "Leave the pooling out, or pool a larger map.",
        )


def _max_pool(node: fx.Node, shape: torch.Size) -> Iterator[Finding]:
    kernel: Any = argument(node, "kernel_size")
    if contains_node(kernel):
        yield Finding(
            call_name(node),
            "a max-pool's kernel",
            "computed in the model",
            "sides of 1 to 4",
            "Write it as numbers.",
        )
        return
    # A time series has width 1.
    sides = _sides((kernel,) if len(shape) == 3 and isinstance(kernel, int) else kernel)
    if any(side not in POOL_SIDES for side in sides):
        yield Finding(
            call_name(node),
            "a max-pool's kernel",
            str(sides),
            "sides of 1 to 4",
            "Pool in two steps.",
        )


def _path(module: IntegerOperator) -> str:
    """Path of an operation, of which its quantizer's path is made."""
    return re.sub(r"\.activation_q(_\d+)?$|_q(?=(_\d+)?$)", "", module.quantizer_path)


def _kind(module: IntegerOperator) -> str:
    """An operation of the CPU in words."""
    if isinstance(module, IntegerTable):
        return f"a function, as a table of {len(module.input.grid.integers)} integers"
    return "softmax" if isinstance(module, IntegerSoftmax) else "a product of two values"


def _float_operations(model: GraphModel, dequantized: fx.Node) -> Iterator[Finding]:
    for user in dequantized.users:
        if user.op == "output":
            continue
        place = call_name(user)
        module = module_of(model, user)
        what = getattr(user.target, "__name__", str(user.target))
        yield Finding(
            place,
            "the operation",
            f"{original_type(module).__name__ if module else what} in float",
            OPERATIONS,
            "It runs on the CPU, between integers.",
        )
