"""What a converted model takes on a microcontroller: flash for its constants, RAM for its values.

An estimate: code, and what a runtime needs for itself, come on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgeailite.quantization.graph.model import GraphModel
from edgeailite.quantization.graph.running import value_shapes
from edgeailite.quantization.integer.conversion import COMPUTES_INTEGERS
from edgeailite.quantization.integer.operators import (
    Dequantize,
    GridModule,
    IntegerLayer,
    Quantize,
    Requantize,
    StepsToReal,
)
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.targets.tinpu.operators import (
    Clip,
    FixedPointLayer,
    OffsetScaleShift,
    WindowAverage,
)

_OFFSET_BYTES, _FLOAT_BYTES, _SHIFT_BYTES = 4, 4, 1
_IN_PLACE_FUNCTIONS = (
    "flatten", "reshape", "view", "squeeze", "unsqueeze", "contiguous", "detach", "dropout",
)  # fmt: skip
_IN_PLACE_MODULES = (Clip, nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout)


@dataclass(frozen=True)
class LayerMemory:
    """Bytes of one operation's constants.

    Attributes:
        name: Its path in the model.
        weights: Weights, packed to their bits.
        offsets: Offsets or biases, 4 bytes each.
        scales: Multipliers and shifts, or float scales.
    """

    name: str
    weights: int = 0
    offsets: int = 0
    scales: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.offsets + self.scales


@dataclass(frozen=True)
class MemoryEstimate:
    """Flash and RAM of a converted model, for one input at a time.

    Attributes:
        layers: The constants of each operation that has some.
        ram: Bytes of the values that are live together at the peak.
        peak: Path of the operation at which they are.
    """

    layers: tuple[LayerMemory, ...]
    ram: int
    peak: str

    @property
    def flash(self) -> int:
        """Bytes of all constants."""
        return sum(layer.total for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {**asdict(self), "flash": self.flash}

    def __str__(self) -> str:
        width = max([len(layer.name) for layer in self.layers] + [5])
        lines = [f"{'layer':{width}}  weights  offsets  scales   total (bytes)"]
        total = LayerMemory(
            "flash", *(sum(getattr(x, part) for x in self.layers) for part in _PARTS)
        )
        for layer in (*self.layers, total):
            parts = (layer.weights, layer.offsets, layer.scales, layer.total)
            lines.append(
                f"{layer.name:{width}}  {parts[0]:7} {parts[1]:8} {parts[2]:7} {parts[3]:7}"
            )
        return "\n".join([*lines, f"RAM: {self.ram} bytes of values at the peak, '{self.peak}'"])


_PARTS = ("weights", "offsets", "scales")


def estimate_memory(
    converted: nn.Module, example_input: Tensor | Sequence[Tensor]
) -> MemoryEstimate:
    """Estimate flash and RAM of a converted model.

    Weights count with their bits, packed; multipliers of 8 bits and shifts with a byte each, longer
    multipliers with two; float scales with four. Values count one byte as integers and four as
    floats; operands and result of an operation are live together; a reshape, or what only clips,
    takes no room of its own.

    Args:
        converted: What a wrapper's ``convert()`` returned, or its ``.module``.
        example_input: Input, or inputs; of a batch the first one counts.

    Raises:
        TypeError: `converted` is no converted model.
        ValueError: The example does not pass through the model.
    """
    model = converted if isinstance(converted, GraphModel) else getattr(converted, "module", None)
    if not isinstance(model, GraphModel) or model.export_view is not None:
        raise TypeError(
            f"estimate_memory got a {type(converted).__name__}; it needs a converted model: "
            "wrapper.convert()."
        )
    inputs = (example_input,) if isinstance(example_input, Tensor) else tuple(example_input)
    shapes = value_shapes(model, [x[:1] for x in inputs])
    layers = []
    seen = set()
    for node in model.graph.find_nodes(op="call_module"):
        if node.target not in seen:
            seen.add(node.target)
            source = shapes.get(node.all_input_nodes[0]) if node.all_input_nodes else None
            constants = _constants(str(node.target), model.module_of(node), source)
            if constants.total:
                layers.append(constants)
    ram, peak = _peak(model, shapes)
    return MemoryEstimate(tuple(layers), ram, peak)


def _constants(path: str, module: Any, shape: torch.Size | None) -> LayerMemory:
    if isinstance(module, FixedPointLayer):
        steps = _steps(module.output)
        weights = _packed(module.weight.numel(), module.weight_bits)
        return LayerMemory(module.layer_path or path, weights, steps.offsets, steps.scales)
    if isinstance(module, OffsetScaleShift):
        return _steps(module, module.quantizer_path or path)
    if isinstance(module, WindowAverage):
        assert shape is not None
        places = module.steps(shape)[2].factor.numel()
        scales = places * (1 + _SHIFT_BYTES)
        return LayerMemory(module.quantizer_path or path, 0, places * _OFFSET_BYTES, scales)
    if isinstance(module, IntegerLayer):
        weights = _packed(module.weight.numel(), module.operation.weight_quantizer.spec.bit_width)
        biases = 0 if module.bias is None else module.bias.numel() * _OFFSET_BYTES
        scales = module.weight_scale.numel() * _FLOAT_BYTES
        return LayerMemory(module.layer_path or path, weights, biases, scales)
    if isinstance(module, COMPUTES_INTEGERS):
        return LayerMemory(path)
    return LayerMemory(path, sum(t.numel() for t in _float_tensors(module)) * _FLOAT_BYTES)


def _float_tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers, but not those of grids or of quantizers that live in the module."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    if isinstance(module, GridModule | FakeQuantize):
        return []
    return own + [t for child in module.children() for t in _float_tensors(child)]


def _packed(count: int, bits: int) -> int:
    return -(-count * bits // 8)


def _steps(module: OffsetScaleShift, path: str = "") -> LayerMemory:
    count = module.factor.numel()
    bits = module.multiplier_bits
    size = _FLOAT_BYTES if bits is None else _SHIFT_BYTES + (1 if bits <= 8 else 2)
    return LayerMemory(path, 0, module.offset.numel() * _OFFSET_BYTES, count * size)


# ---- values --------------------------------------------------------------------------------------


def _peak(model: GraphModel, shapes: dict[fx.Node, torch.Size]) -> tuple[int, str]:
    """Bytes live together at most, and the operation at which they are."""
    nodes = [n for n in model.graph.nodes if n in shapes or n.op == "output"]
    owner: dict[fx.Node, fx.Node] = {}  # whose room a value takes
    size: dict[fx.Node, int] = {}
    last: dict[fx.Node, int] = {}
    integer: set[fx.Node] = set()
    for i, node in enumerate(nodes):
        operands = [n for n in node.all_input_nodes if n in owner]
        last |= {owner[operand]: i for operand in operands}
        if node.op in ("output", "get_attr"):
            continue
        if _is_integer(model, node, operands, integer):
            integer.add(node)
        in_place = bool(operands) and _is_in_place(model, node)
        owner[node] = owner[operands[0]] if in_place else node
        if not in_place:
            size[node] = shapes[node].numel() * (1 if node in integer else _FLOAT_BYTES)
        last[owner[node]] = i
    order = {node: i for i, node in enumerate(nodes)}
    live = [
        (sum(b for n, b in size.items() if order[n] <= i <= last[n]), node)
        for i, node in enumerate(nodes)
    ]
    most, node = max(live, key=lambda found: found[0])
    return most, str(node.target) if node.op == "call_module" else node.name


def _is_integer(
    model: GraphModel, node: fx.Node, operands: list[fx.Node], integer: set[fx.Node]
) -> bool:
    module = model.module_of(node)
    if isinstance(module, Dequantize):
        return _is_inside_kernel(model, node)
    if isinstance(module, IntegerLayer) and module.output is None:
        return False
    if isinstance(module, (*COMPUTES_INTEGERS, Requantize)):
        return True
    return bool(operands) and all(n in integer for n in operands)


def _is_inside_kernel(model: GraphModel, node: fx.Node) -> bool:
    """Whether real values only serve operations whose results are integers again at once."""
    ends = (Quantize, Requantize)
    readers = [u for user in node.users for u in (user.users if user.users else [user])]
    return all(isinstance(model.module_of(u), (*ends, StepsToReal)) for u in readers)


def _is_in_place(model: GraphModel, node: fx.Node) -> bool:
    module, operand = model.module_of(node), node.all_input_nodes[0]
    if isinstance(module, Dequantize):
        return _is_inside_kernel(model, node)
    if isinstance(module, Requantize | StepsToReal):
        return True
    if isinstance(module, Quantize):
        return any(isinstance(model.module_of(n), Dequantize) for n in operand.all_input_nodes)
    if module is not None:
        return isinstance(module, _IN_PLACE_MODULES)
    return getattr(node.target, "__name__", str(node.target)) in _IN_PLACE_FUNCTIONS
