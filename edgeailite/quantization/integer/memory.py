"""Memory of a converted model on a microcontroller: flash for constants, RAM for values.

An estimate: code, and what a runtime needs for itself, come on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgeailite.quantization.graph.calls import traits_of
from edgeailite.quantization.graph.model import GraphModel, graph_of, module_of, program_of
from edgeailite.quantization.graph.patterns import call_name
from edgeailite.quantization.graph.running import value_shapes
from edgeailite.quantization.integer.grid import (
    FLOAT_BYTES,
    ApplyScale,
    Dequantize,
    GridModule,
    IntegerOperator,
    Quantize,
    Requantize,
)
from edgeailite.quantization.integer.memory_plan import lifetimes, peak
from edgeailite.quantization.modules.activation import FakeQuantize


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
    if not isinstance(model, GraphModel) or program_of(model).stage != "integer":
        raise TypeError(
            f"estimate_memory got a {type(converted).__name__}; it needs a converted model: "
            "wrapper.convert()."
        )
    inputs = (example_input,) if isinstance(example_input, Tensor) else tuple(example_input)
    shapes = value_shapes(model, [x[:1] for x in inputs])
    layers = []
    seen = set()
    for node in graph_of(model).find_nodes(op="call_module"):
        if node.target not in seen:
            seen.add(node.target)
            source = shapes.get(node.all_input_nodes[0]) if node.all_input_nodes else None
            constants = _constants(str(node.target), module_of(model, node), source)
            if constants.total:
                layers.append(constants)
    return MemoryEstimate(tuple(layers), *_peak(model, shapes))


def _constants(path: str, module: Any, shape: torch.Size | None) -> LayerMemory:
    if isinstance(module, IntegerOperator):
        name = module.layer_path or module.quantizer_path or path
        return LayerMemory(name, *module.constants(shape))
    return LayerMemory(path, sum(t.numel() for t in _float_tensors(module)) * FLOAT_BYTES)


def _float_tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers, but not those of grids or of quantizers that live in the module."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    if isinstance(module, GridModule | FakeQuantize):
        return []
    return own + [t for child in module.children() for t in _float_tensors(child)]


# ---- values --------------------------------------------------------------------------------------


def _peak(model: GraphModel, shapes: dict[fx.Node, torch.Size]) -> tuple[int, str]:
    """Most bytes that live together, and the operation at which they do."""
    nodes = [n for n in graph_of(model).nodes if n in shapes or n.op == "output"]
    owner: dict[fx.Node, fx.Node] = {}  # whose room a value takes
    sizes: dict[fx.Node, int] = {}
    accesses: list[tuple[list[fx.Node], list[fx.Node]]] = []
    integer: set[fx.Node] = set()
    for node in nodes:
        operands = [n for n in node.all_input_nodes if n in owner]
        reads = [owner[operand] for operand in operands]
        if node.op in ("output", "get_attr"):
            accesses.append((reads, []))
            continue
        if _is_integer(model, node, operands, integer):
            integer.add(node)
        in_place = bool(operands) and _is_in_place(model, node)
        owner[node] = owner[operands[0]] if in_place else node
        if not in_place:
            sizes[node] = shapes[node].numel() * (1 if node in integer else FLOAT_BYTES)
        accesses.append((reads, [owner[node]]))
    most, index = peak(lifetimes(accesses), sizes, len(nodes))
    return most, call_name(nodes[index])


def _is_integer(
    model: GraphModel, node: fx.Node, operands: list[fx.Node], integer: set[fx.Node]
) -> bool:
    module = module_of(model, node)
    if isinstance(module, Dequantize):
        return _is_inside_kernel(model, node)
    if isinstance(module, IntegerOperator):
        return module.output_grid is not None
    if isinstance(module, Requantize):
        return True
    return bool(operands) and all(n in integer for n in operands)


def _is_inside_kernel(model: GraphModel, node: fx.Node) -> bool:
    """Return True if real values only serve operations whose results are integers at once."""
    ends = (Quantize, Requantize, ApplyScale)
    readers = [u for user in node.users for u in (user.users if user.users else [user])]
    return all(isinstance(module_of(model, u), ends) for u in readers)


def _is_in_place(model: GraphModel, node: fx.Node) -> bool:
    module, operand = module_of(model, node), node.all_input_nodes[0]
    if isinstance(module, Dequantize):
        return _is_inside_kernel(model, node)
    if isinstance(module, Requantize | ApplyScale):
        return True
    if isinstance(module, Quantize):
        return any(isinstance(module_of(model, n), Dequantize) for n in operand.all_input_nodes)
    if isinstance(module, IntegerOperator):
        return module.only_clamps
    return traits_of(node).keeps_order
