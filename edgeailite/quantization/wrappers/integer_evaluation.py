"""Evaluation with the integers that the device will compute, where the simulation rounds apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from edgeailite.quantization.arithmetic.fixed_point import EXACT_BITS
from edgeailite.quantization.graph.average_calls import values_in_a_sum
from edgeailite.quantization.graph.behavior import named_tensors
from edgeailite.quantization.graph.calls import arguments, operation_of, traits_of
from edgeailite.quantization.graph.hooks import has_forward_hooks
from edgeailite.quantization.graph.model import graph_of, module_of, program_of, target_of
from edgeailite.quantization.graph.operations import PRELU
from edgeailite.quantization.graph.patterns import is_function
from edgeailite.quantization.graph.running import GraphRunner
from edgeailite.quantization.graph.structure import Place, flatten, rebuild
from edgeailite.quantization.integer.exact_sums import always_has_dyadic_weights
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.modules.layer import QuantLayer
from edgeailite.quantization.modules.layer_calls import layer_calls, quantized_modules
from edgeailite.quantization.modules.normalization import StandaloneBatchNorm
from edgeailite.quantization.modules.pact2 import quantizers
from edgeailite.quantization.wrappers.arguments import warn_user

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeailite.quantization.graph.model import GraphModel


class IntegerEvaluation:
    """Runs the integer graph of a prepared model, which is made again whenever the model changed.

    The simulation goes on where it is exact in every value: with power-of-two scales and sums of
    products that float32 holds (8 bits, up to 518 products), without functions and without weights
    of resizing that the integer graph rounds. It also does where a hook looks at a module, where
    quantization is off, where ranges have seen no data, and in a copy of ``DataParallel``.

    Args:
        model: Prepared model.
        convert: Makes the integer graph of one.
    """

    def __init__(self, model: GraphModel, convert: Callable[[GraphModel], GraphModel]) -> None:
        self._convert = convert
        self._quantized = quantized_modules(model)
        self._specs: tuple[Any, ...] | None = None
        self._may_round_apart = False
        self._averages = _averages_in(model)
        self._is_wide: dict[tuple[torch.Size, ...], bool] = {}
        self._state: tuple[Any, ...] | None = None
        self._graph: GraphModel | None = None

    @torch.compiler.disable
    def is_needed_for(
        self, model: GraphModel, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> bool:
        """Return True if the simulation may round apart with inputs of these shapes."""
        specs = _specs_of(self._quantized)
        if specs != self._specs:  # bits were chosen, or loaded
            self._specs, self._may_round_apart = specs, _may_round_apart(model)
            self._is_wide.clear()
        if self._may_round_apart or not self._averages:
            return self._may_round_apart
        shapes = tuple(tensor.shape for tensor in flatten((args, kwargs))[0])
        if shapes not in self._is_wide:
            if _asks_for_simulation(model):
                return False
            self._is_wide[shapes] = _has_wide_sums(model, args, kwargs)
        return self._is_wide[shapes]

    @torch.compiler.disable
    def run(self, model: GraphModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what the integer graph gives; its gradient is that of the simulation.

        Args:
            model: Prepared model in evaluation mode.
            args: Inputs.
            kwargs: Inputs by name.
        """
        graph = None if _asks_for_simulation(model) else self._current(model)
        if graph is None:
            return model(*args, **kwargs)
        inputs, _ = flatten((args, kwargs))
        device = inputs[0].device.type if inputs else "cpu"
        with torch.no_grad(), torch.autocast(device, enabled=False):
            integer = graph(*args, **kwargs)
        if not torch.is_grad_enabled():
            return integer
        tensors = (*inputs, *nn.Module.parameters(model))
        if not any(tensor.requires_grad for tensor in tensors):
            return integer
        return _with_gradient(integer, model(*args, **kwargs))

    def _current(self, model: GraphModel) -> GraphModel | None:
        state = _state_of(model), _specs_of(self._quantized)
        if state != self._state:
            self._state, self._graph = state, self._made(model)
        return self._graph

    def _made(self, model: GraphModel) -> GraphModel | None:
        """Make the graph; None, with a warning, where the model has none."""
        if not all(q.has_range for q in quantizers(model).values()):
            return None
        try:
            return self._convert(model)
        except ValueError as error:
            warn_user(f"Evaluation simulates the integers, for there is no integer graph: {error}")
            return None

    def __getstate__(self) -> dict[str, Any]:
        """Take nothing: the next evaluation makes the graph again."""
        return {**self.__dict__, "_state": None, "_graph": None}


def _may_round_apart(model: GraphModel) -> bool:
    """Return True if the simulation and the integer graph may differ in a value.

    They may where scales are free, where a sum of products may need more bits than float32 has,
    where a function's value depends on how a library computes it, and where the weights of a
    resizing are no dyadic numbers.
    """
    activations = [q.spec for q in quantizers(model).values()]
    bits = max((spec.bit_width for spec in activations), default=0)
    nodes = [n for n in graph_of(model).nodes if target_of(model).computes(operation_of(n))]
    if any(
        is_function(operation_of(node))
        or operation_of(node) is PRELU
        or isinstance(module_of(model, node), StandaloneBatchNorm)
        or _rounds_weights(node, bits)
        for node in nodes
    ):
        return True
    specs, longest = activations, 0
    for call in layer_calls(model):
        spec, weight = call.layer.weight_quantizer.spec, call.weight
        specs.append(spec)
        largest = (weight.numel() // weight.shape[0]) << (bits + spec.bit_width - 1)
        longest = max(longest, largest.bit_length())
    return longest > EXACT_BITS or any(
        not spec.power_of_two and spec.scale_bits is None for spec in specs
    )


def _averages_in(model: GraphModel) -> bool:
    """Return True if there are averages with sums whose length the images decide."""
    return any(
        traits_of(node).averages and target_of(model).computes(operation_of(node))
        for node in graph_of(model).nodes
        if "output_quantizer" not in node.kwargs  # a module of the target, which checks itself
    )


@torch.no_grad()
def _has_wide_sums(model: GraphModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return True if a sum of so many values may need more bits than float32 has."""
    bits = max((q.spec.bit_width for q in quantizers(model).values()), default=0)
    found = False

    def check(node: fx.Node, values: list[Any]) -> None:
        nonlocal found
        if traits_of(node).averages and "output_quantizer" not in node.kwargs:
            found = found or values_in_a_sum(node, module_of(model, node), values[0]) << bits > (
                1 << EXACT_BITS
            )

    inputs = graph_of(model).find_nodes(op="placeholder")
    given = {**dict(zip((str(n.target) for n in inputs), args, strict=False)), **kwargs}
    GraphRunner(model, before=check).run(
        *(given.get(str(n.target), n.args[0] if n.args else None) for n in inputs)
    )
    return found


def _rounds_weights(node: fx.Node, bits: int) -> bool:
    """Return True for a resizing whose weights the integer graph may round."""
    resizes = operation_of(node).name in ("resize", "resize_cubic")
    return resizes and not always_has_dyadic_weights(arguments(node), bits)


def _asks_for_simulation(model: GraphModel) -> bool:
    """Return True where a module must run itself: for its hooks, its observer, or in float."""
    if getattr(model, "_is_replica", False) or has_forward_hooks(model):
        return True
    for module in nn.Module.modules(model):
        if isinstance(module, FakeQuantize) and (module.training or not module.fake_quant_enabled):
            return True
        if isinstance(module, QuantLayer) and not module.fake_quant_enabled:
            return True
    return any(has_forward_hooks(model.get_submodule(path)) for path in program_of(model).modules)


def _state_of(model: GraphModel) -> tuple[Any, ...]:
    """All tensors that the integer graph depends on.

    Values that are written through ``.data`` have no new version: hence the hash.
    """
    tensors = [t for kind in ("_parameters", "_buffers") for _, t in named_tensors(model, kind)]
    return (
        *((t.data_ptr(), None if t.is_inference() else t._version) for t in tensors),
        *_hashes(tensors),
    )


def _specs_of(modules: list[FakeQuantize | QuantLayer]) -> tuple[Any, ...]:
    """Grids of quantizers, of weights and of biases."""
    return tuple(
        m.spec if isinstance(m, FakeQuantize) else (m.weight_quantizer.spec, m.bias_spec)
        for m in modules
    )


def _hashes(tensors: list[Tensor]) -> list[int]:
    """Numbers that change with the values of tensors, and with their places.

    For each row of a tensor a hash of its bits, which is blind to exchanged and negated values, and
    a sum with a factor for each place, which is not.
    """
    rows = [t.detach().reshape(len(t) if t.dim() > 1 else 1, -1) for t in tensors if t.numel()]
    factors = {
        device: torch.cos(torch.arange(longest, dtype=torch.float32, device=device))
        for device, longest in _longest(rows).items()
    }
    found: dict[torch.device, list[Tensor]] = {}
    for row in rows:
        sums = torch.mv(row.float(), factors[row.device][: row.shape[1]])
        hashes = torch.hash_tensor(row, dim=1).view(torch.int64)
        found.setdefault(row.device, []).extend((hashes, sums.view(torch.int32).long()))
    return [number for parts in found.values() for number in torch.cat(parts).tolist()]


def _longest(rows: list[Tensor]) -> dict[torch.device, int]:
    longest: dict[torch.device, int] = {}
    for row in rows:
        longest[row.device] = max(longest.get(row.device, 0), row.shape[1])
    return longest


def _with_gradient(integer: Any, simulated: Any) -> Any:
    """The values of one result with the gradient of another."""
    values, structure = flatten(integer)
    gradients, _ = flatten(simulated)
    tensors = [
        _StraightThrough.apply(value, gradient) if gradient.requires_grad else value
        for value, gradient in zip(values, gradients, strict=True)
    ]
    return rebuild(structure, lambda v: tensors[v.index] if isinstance(v, Place) else v)


class _StraightThrough(torch.autograd.Function):
    """Values of the first tensor, gradient of the second."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradient: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad
