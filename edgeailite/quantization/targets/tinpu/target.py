"""The target of TI's NPU microcontrollers: offset, multiplier and shift."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor, fx, nn

from edgeailite.quantization.arithmetic.fixed_point import MULTIPLIER_BITS
from edgeailite.quantization.graph.average_calls import average_module, unknown_windows
from edgeailite.quantization.graph.calls import operation_of, traits_of
from edgeailite.quantization.graph.operations import BATCH_NORM, QUANTIZER
from edgeailite.quantization.graph.patterns import call_name, is_function, is_operand
from edgeailite.quantization.graph.variants import CONSTANT_OPERAND, is_constant
from edgeailite.quantization.integer.rule_target import RuleTarget
from edgeailite.quantization.prepare.policy import ModuleAnnotation, OutputAnnotation
from edgeailite.quantization.targets.tinpu.c_files import export_c
from edgeailite.quantization.targets.tinpu.conversion import RULES
from edgeailite.quantization.targets.tinpu.hardware_rules import (
    check_hardware_rules,
    operations_of_the_cpu,
)
from edgeailite.quantization.targets.tinpu.modules import (
    OffsetScaleShiftAverage,
    OffsetScaleShiftBatchNorm,
)

if TYPE_CHECKING:
    from edgeailite.quantization.arithmetic.spec import QuantSpec, Rounding
    from edgeailite.quantization.graph.model import GraphModel
    from edgeailite.quantization.graph.registry import Operation
    from edgeailite.quantization.integer.rules import Rules


@dataclass(frozen=True)
class Tinpu(RuleTarget):
    """An NPU that computes ``floor((acc + offset) * multiplier * 2^-shift)`` in integers.

    Values are unsigned only where the graph says so (behind a ReLU). Inputs and result of an add or
    a concat share one scale. Batch norms that nothing folds, and averages, are multiplications in
    fixed point; a batch norm or a function at the network's input takes raw values. Functions of
    values on a grid are tables, which a CPU beside the NPU reads. All else stays in float.

    Args:
        input_multiplier_bits: Bits of the multiplier of a batch norm at the network's input,
            without its sign, 2 to 16; None: it is a float. All other multipliers have 8.

    Raises:
        ValueError: A field is outside of what it allows.
    """

    input_multiplier_bits: int | None = 12

    name: ClassVar[str] = "tinpu"
    arithmetic: ClassVar[Literal["scale", "fixed_point"]] = "fixed_point"
    default_format: ClassVar[str] = "TINPU_INT_MODEL"
    traced_format: ClassVar[str] = "FAKEQ_MODEL"
    rounding: ClassVar[Rounding] = "half_up"
    takes_presets: ClassVar[bool] = False
    rules: ClassVar[Rules] = RULES
    returns_integers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        bits = self.input_multiplier_bits
        if bits is not None and not 2 <= bits <= 16:
            raise ValueError(f"input_multiplier_bits is {bits!r}; allowed: 2 to 16, or None.")

    def quantizes_input_of(self, operation: Operation) -> bool:
        """Return True for what is computed, unless it takes raw values: batch norms, functions."""
        takes_raw_values = operation is BATCH_NORM or is_function(operation)
        return self.computes(operation) and not takes_raw_values

    def refuses(self, node: fx.Node, module: nn.Module | None) -> str:
        """Say which windows of an average are not known; constants have no form in its files."""
        if any(is_constant(source) and is_operand(source, node) for source in node.all_input_nodes):
            return CONSTANT_OPERAND
        return unknown_windows(node, module) if traits_of(node).averages else ""

    def annotate(self, node: fx.Node, annotation: OutputAnnotation) -> OutputAnnotation:
        """Decide the sign, let averages and batch norms round down, share scales."""
        spec, producer = annotation.spec, _producer(node)
        operation = operation_of(producer)
        if spec.symmetric and spec.signed is None:
            spec = replace(spec, signed=True)
        is_batch_norm = operation is BATCH_NORM
        if is_batch_norm or (operation.traits.averages and self.computes(operation)):
            on_grid = _is_on_grid(producer.all_input_nodes[0])
            if on_grid and not is_batch_norm:
                producer.meta["module"] = ModuleAnnotation(_make_average, "_sums")
            elif is_batch_norm:
                bits = MULTIPLIER_BITS if on_grid else self.input_multiplier_bits
                producer.meta["module"] = ModuleAnnotation(_MakeBatchNorm(bits))
        if "module" in producer.meta or _has_own_half_scale(producer):
            spec = replace(spec, rounding="floor")
        shares = operation.traits.joins_grids
        return replace(annotation, spec=spec, shares_scale=shares)

    def check_specs(self, weight: QuantSpec, activation: QuantSpec) -> None:
        """Raise a ValueError for what a multiplier of 8 bits and a shift cannot compute."""
        if weight.bit_width == 8 and not weight.power_of_two:
            raise ValueError(
                "8-bit weights have power2_scale=False, but at 8 bits this target only shifts: its "
                "scales are powers of two. Leave power2_scale out, use 4 or 2 bits, or a Generic "
                "wrapper."
            )
        if not (activation.symmetric and activation.power_of_two and activation.bit_width <= 8):
            raise ValueError(
                "Activations of this target have up to 8 bits, no zero point, and a power of two "
                f"as scale; given: {activation.bit_width} bits, symmetric={activation.symmetric}, "
                f"power2_scale={activation.power_of_two}. Use torch.per_tensor_symmetric with "
                "power2_scale=True, or a Generic wrapper."
            )

    def check(self, converted: GraphModel, inputs: Sequence[Tensor], strict: bool = False) -> None:
        """Compare with the rules of the NPU."""
        check_hardware_rules(converted, inputs, strict)

    def remarks(self, converted: GraphModel) -> list[str]:
        """Name the operations on integers that the CPU computes, not the NPU."""
        found = operations_of_the_cpu(converted)
        listed = ", ".join(f"'{path}' ({kind})" for path, kind in found)
        return [f"the CPU computes, in integers, what the NPU does not: {listed}."] if found else []

    def write_c(
        self,
        converted: GraphModel,
        example_inputs: tuple[Tensor, ...],
        folder: str | os.PathLike[str],
        name: str,
    ) -> list[Path]:
        """Write C for the runner."""
        return export_c(converted, example_inputs[0], folder, name)


def _make_average(node: fx.Node, module: nn.Module | None) -> nn.Module:
    return OffsetScaleShiftAverage(average_module(node, module), call_name(node))


@dataclass(frozen=True)
class _MakeBatchNorm:
    """Makes the module of a batch norm with a multiplier of so many bits."""

    multiplier_bits: int | None

    def __call__(self, node: fx.Node, module: nn.Module | None) -> nn.Module:
        assert module is not None
        return OffsetScaleShiftBatchNorm.from_float(module, self.multiplier_bits)


def _producer(node: fx.Node) -> fx.Node:
    """Operation whose result is quantized at `node`, in front of what the quantizer absorbs."""
    while traits_of(node).is_activation and "quant" not in node.all_input_nodes[0].meta:
        node = node.all_input_nodes[0]
    if operation_of(node) is BATCH_NORM and "layer" in node.all_input_nodes[0].meta:
        layer = node.all_input_nodes[0]
        return layer if layer.meta["layer"].batch_norm is node else node
    return node


def _is_on_grid(node: fx.Node) -> bool:
    """Return True for a value that is quantized where it is made, or where what it moves is."""
    while "quant" not in node.meta and operation_of(node) is not QUANTIZER:
        if not traits_of(node).moves_values or not node.all_input_nodes:
            return False
        node = node.all_input_nodes[0]
    return True


def _has_own_half_scale(producer: fx.Node) -> bool:
    """Return True if a layer's offset holds a half that is not exactly half of the output scale."""
    annotation = producer.meta.get("layer")
    if annotation is None:
        return False
    qconfig = annotation.qconfig
    return qconfig.weight.scale_bits is not None or qconfig.bias.is_float
