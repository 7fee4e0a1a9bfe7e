"""Calls of quantizing layers with everything that belongs to them, read from the graph."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from edgeailite.quantization.graph.calls import argument, operation_of
from edgeailite.quantization.graph.model import graph_of, module_of
from edgeailite.quantization.graph.operations import LINEAR, TRANSPOSED_CONVOLUTION
from edgeailite.quantization.graph.patterns import quantizer_behind
from edgeailite.quantization.graph.recording import Hook, hooked
from edgeailite.quantization.graph.running import parameter_value
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.modules.layer import FoldedLayer, QuantLayer

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel


# An activation function of values of shape (n, C).
Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LayerCall:
    """One call of a quantizing layer.

    Attributes:
        node: The call.
        path: The layer's place in the module tree.
        layer: The layer.
        weight: Its float weight (from the call, for functional layers). A parameter, or a tensor
            computed from parameters, which cannot be changed.
        bias: Its float bias, or None.
        batch_norm: Batch norm that is folded into it, or None.
        input_quantizer: Quantizer whose grid its input lies on, or None for a float input.
        output_quantizer: The one behind it, if it rounds down; see :meth:`QuantLayer.forward`.
    """

    node: fx.Node
    path: str
    layer: QuantLayer
    weight: Tensor
    bias: Tensor | None
    batch_norm: nn.Module | None
    input_quantizer: FakeQuantize | None
    output_quantizer: FakeQuantize | None

    @property
    def input_node(self) -> fx.Node:
        """Node whose value is the layer's input."""
        node = self.node.args[0] if self.node.args else self.node.kwargs["input"]
        assert isinstance(node, fx.Node)
        return node

    @property
    def output_size(self) -> Any:
        """Output size that a transposed convolution is given in the call, numbers or nodes."""
        known = operation_of(self.node) is TRANSPOSED_CONVOLUTION
        return argument(self.node, "output_size") if known else None

    @property
    def channel_axis(self) -> int:
        """Axis of the output that holds the channels."""
        return -1 if operation_of(self.node) is LINEAR else 1

    @property
    def has_own_weight(self) -> bool:
        """True if the weight can be changed: it is a parameter, not computed from some."""
        return isinstance(self.weight, nn.Parameter)

    def folded(self) -> FoldedLayer:
        """Folded weight and bias, and the weight's grid."""
        return self.layer.folded(self.weight, self.bias, self.batch_norm, self.input_quantizer)

    def quantized_parameters(self) -> tuple[Tensor, Tensor | None]:
        """Folded weight and bias on their grids."""
        return self.layer.quantized_parameters(
            self.weight, self.bias, self.batch_norm, self.input_quantizer, self.output_quantizer
        )


def layer_call(model: GraphModel, node: fx.Node) -> LayerCall | None:
    """Call of a quantizing layer at a node; None for any other node."""
    layer = module_of(model, node)
    if not isinstance(layer, QuantLayer):
        return None

    def resolve(value: Any) -> Any:
        return parameter_value(model, value) if isinstance(value, fx.Node) else value

    if "weight" in node.meta["call"].places:  # a functional layer
        weight, bias = (resolve(argument(node, name)) for name in ("weight", "bias"))
    else:
        weight, bias = layer.weight, layer.bias
    names = ("batch_norm", "input_quantizer", "output_quantizer")
    references = {name: resolve(node.kwargs.get(name)) for name in names}
    return LayerCall(node, str(node.target), layer, weight, bias, **references)


def layer_calls(model: GraphModel) -> list[LayerCall]:
    """Calls of all quantizing layers, in the order of the graph; a shared layer has several."""
    found = (layer_call(model, node) for node in graph_of(model).nodes)
    return [call for call in found if call is not None]


def output_quantizer(model: GraphModel, call: LayerCall) -> FakeQuantize | None:
    """Quantizer behind a layer, if its output is quantized there; else None."""
    behind = quantizer_behind(call.node)
    module = None if behind is None else module_of(model, behind)
    return module if isinstance(module, FakeQuantize) else None


def activation_behind(model: GraphModel, call: LayerCall) -> Activation:
    """Return the activation function behind a layer, which a quantizer absorbed, or the identity.

    It takes and returns outputs of shape ``(n, C)``.
    """
    quantizer = output_quantizer(model, call)
    return _as_it_is if quantizer is None else quantizer.float_activation


def _as_it_is(y: Tensor) -> Tensor:
    return y


def quantized_modules(model: nn.Module) -> list[FakeQuantize | QuantLayer]:
    """Quantizers and quantizing layers of a model, in the order of its modules."""
    modules = nn.Module.modules(model)
    return [m for m in modules if isinstance(m, FakeQuantize | QuantLayer)]


def copied_state(model: nn.Module) -> dict[str, Any]:
    """Copy of a state dict, to come back to."""
    state = model.state_dict()
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}


def disable_quantization(model: nn.Module) -> None:
    """Let all quantizers and layers of `model` compute as in float from now on."""
    for module in quantized_modules(model):
        module.fake_quant_enabled = False


def float_copy(model: GraphModel) -> GraphModel:
    """Copy a prepared model; the copy computes as in float."""
    copied = copy.deepcopy(model)
    disable_quantization(copied)
    return copied


@contextmanager
def float_arithmetic(model: nn.Module) -> Iterator[None]:
    """Let all quantizers and layers of `model` compute as in float and observe nothing."""
    modules = quantized_modules(model)
    before = [(m, m.fake_quant_enabled, getattr(m, "observer_enabled", None)) for m in modules]
    try:
        for module in modules:
            module.fake_quant_enabled = False
            if isinstance(module, FakeQuantize):
                module.observer_enabled = False
        yield
    finally:
        for module, fake_quant, observer in before:
            module.fake_quant_enabled = fake_quant
            if isinstance(module, FakeQuantize):
                module.observer_enabled = bool(observer)


@torch.no_grad()
def run_in_float(
    model: nn.Module,
    batches: Sequence[tuple[Any, ...]],
    hooks: Iterable[tuple[nn.Module, Hook]] = (),
) -> None:
    """Run the float model on all batches, for the sake of its hooks.

    Args:
        model: Prepared model.
        batches: Its inputs, a tuple for each batch.
        hooks: Modules and their hooks, see :func:`hooked`.
    """
    with hooked(hooks), float_arithmetic(model):
        for batch in batches:
            model(*batch)


def added_half_scale(output_quantizer: FakeQuantize | None) -> Tensor | float:
    """Half a scale, added to a value in front of a quantizer that rounds down; else 0."""
    if output_quantizer is None or not output_quantizer.fake_quant_enabled:
        return 0.0
    if output_quantizer.spec.rounding != "floor":
        return 0.0
    return output_quantizer.qparams().scale / 2
