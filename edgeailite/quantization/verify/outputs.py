"""Outputs of an integer graph and their grids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, fx, nn

from edgeailite.quantization.graph.calls import traits_of
from edgeailite.quantization.graph.model import graph_of, module_of
from edgeailite.quantization.graph.structure import paths
from edgeailite.quantization.integer.grid import Dequantize, IntegerOperator

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel


class OutputGrid(NamedTuple):
    """Grid of one output.

    Attributes:
        scale: Difference of two neighbours on the grid, 1 if the output is integers; None: it lies
            on no grid.
        factor: Multiplies the output to give real values: 1 if it is real already.
    """

    scale: float | None = None
    factor: float = 1.0


def flat(output: Any) -> list[Any]:
    """Return all tensors (or graph nodes) of a model's output, in order."""
    if isinstance(output, fx.Node) and isinstance(output.target, type):  # makes a dataclass
        return flat((output.args, output.kwargs))
    if isinstance(output, Tensor | fx.Node):
        return [output]
    found = [leaf for _, leaf in paths(output) if isinstance(leaf, Tensor | fx.Node)]
    return [leaf for item in found for leaf in flat(item)]


def output_grids(converted: GraphModel) -> list[OutputGrid]:
    """Return the grid of each output of an integer graph."""
    (output,) = graph_of(converted).find_nodes(op="output")
    return [_output_grid(_origin(converted, node)) for node in flat(output.args[0])]


def _output_grid(module: nn.Module | None) -> OutputGrid:
    if isinstance(module, Dequantize):
        return OutputGrid(module.grid.scale)
    if not isinstance(module, IntegerOperator):
        return OutputGrid()
    grid = module.output_grid
    return OutputGrid(1.0, 1.0 if grid is None else grid.scale)


def _origin(converted: GraphModel, node: fx.Node) -> nn.Module | None:
    """Module whose values an output has, perhaps moved."""
    module = module_of(converted, node)
    while not isinstance(module, IntegerOperator | Dequantize) and node.all_input_nodes:
        if not traits_of(node).moves_values:
            break
        node = node.all_input_nodes[0]
        module = module_of(converted, node)
    return module
