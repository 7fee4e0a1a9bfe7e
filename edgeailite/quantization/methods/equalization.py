"""Cross-layer equalization: scale channels so that each fills the range of its tensor.

A channel that is divided by `s` where it is made and multiplied by `s` where it is read leaves the
network as it is in float: ReLU lets a positive factor through, ReLU6's bound is divided along. On a
grid for the whole tensor a channel then has 255 values instead of 2.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from edgeailite._extras import needs_extra
from edgeailite.quantization.graph.calls import argument, arguments, operation_of, traits_of
from edgeailite.quantization.graph.model import graph_of, module_of
from edgeailite.quantization.graph.operations import CAT, MEAN, SUM
from edgeailite.quantization.graph.running import value_shapes
from edgeailite.quantization.methods.registry import Batches, post_training_method
from edgeailite.quantization.methods.weight_ranges import start_weight_ranges
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.modules.layer_calls import LayerCall, layer_calls, run_in_float

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel
    from edgeailite.quantization.graph.recording import Hook

# Largest magnitude of every scaled channel: it fills a power-of-two range of 8 bits.
FILLED = 1.0 - 2.0**-8
# Channels below this part of their tensor's largest magnitude are not enlarged further.
SMALLEST = 2.0**-10
# No row of a layer's weights becomes larger than so many times the median row.
ROW_LIMIT = 4.0

# Stands for all channels that can't be scaled.
_PINNED = 0


class _Channels:
    """Numbers of channels that share one scale; 0 is not to be scaled."""

    def __init__(self) -> None:
        self.count = 1
        self.edges: list[np.ndarray] = []

    def new(self, count: int) -> np.ndarray:
        """Return numbers of channels that nothing ties yet."""
        numbers = np.arange(self.count, self.count + count)
        self.count += count
        return numbers

    def tie(self, one: np.ndarray, other: np.ndarray) -> None:
        """Give channels the same scale, one by one."""
        self.edges.append(np.stack(np.broadcast_arrays(one, other)))

    def pin(self, channels: np.ndarray) -> None:
        """Leave channels as they are."""
        self.tie(channels, np.full_like(channels, _PINNED))

    def groups(self) -> np.ndarray:
        """Return the number of each channel's group; that of the pinned ones is at index 0."""
        with needs_extra("search", "Equalization"):
            from scipy.sparse import coo_matrix
            from scipy.sparse.csgraph import connected_components

        pairs = np.concatenate([np.zeros((2, 0), int), *self.edges], axis=1)
        graph = coo_matrix((np.ones(pairs.shape[1]), pairs), shape=(self.count, self.count))
        return connected_components(graph, directed=False)[1]


@post_training_method("equalization", keeps_function=True)
@torch.no_grad()
def equalize(model: GraphModel, batches: Batches) -> list[str]:
    """Scale every channel to fill its tensor's range, wherever the graph allows it.

    ``W'[o, i] = W[o, i] s_i / s_o``, ``b'[o] = b[o] / s_o`` with ``s = max |x| / FILLED`` over the
    channel's values on the data. A channel keeps its scale through ReLU and ReLU6, pools, depthwise
    layers, residual sums and concatenations. A tiny channel is not enlarged beyond the limit that
    most rows of its layer need. Inputs and outputs of the network keep their scale, and so does
    each value that no rule covers. A ReLU6 becomes a clip per channel at ``6 / s``, which is never
    inside the new range: no operation is added on the device.

    Args:
        model: Prepared model; in evaluation mode.
        batches: Inputs of the model, a tuple for each batch.

    Returns:
        Paths of the layers whose weights changed.

    Reference: Nagel et al. 2019, https://arxiv.org/abs/1906.04721, section 4.1; there by the ranges
        of the weights, here by those of the activations, which those of the weights follow.
    """
    calls = {call.node: call for call in layer_calls(model)}
    channels, value_of = _number_channels(model, calls, batches[0])
    groups = channels.groups()
    ranges = _group_ranges(model, value_of, groups, batches)
    limits = _group_limits(model, value_of, groups)
    scales = _choose_scales(calls, value_of, groups, ranges, limits)
    changed = []
    for call in calls.values():
        given = _of(scales, groups, value_of, call.input_node)
        if _rescale(call, given, _of(scales, groups, value_of, call.node)):
            changed.append(call.path)
    for call in calls.values():
        if call.path in changed:
            call.layer.forget_weight_range()
    start_weight_ranges(model)
    for node, quantizer in _bounded_quantizers(model):
        scale = _of(scales, groups, value_of, node)
        if bool((scale != 1).any()):
            quantizer.clip_high = quantizer.upper_bounds(scale.numel()) / scale
    return changed


def _of(
    scales: Tensor, groups: np.ndarray, value_of: dict[fx.Node, np.ndarray], node: fx.Node
) -> Tensor:
    """Scales of a value's channels, float32, shape ``(C,)``."""
    return scales[torch.from_numpy(groups[value_of[node]])]


def _number_channels(
    model: GraphModel, calls: dict[fx.Node, LayerCall], example: tuple[Any, ...]
) -> tuple[_Channels, dict[fx.Node, np.ndarray]]:
    """Number each channel of each value, and tie those that belong together."""
    shapes = value_shapes(model, example)
    channels = _Channels()
    value_of: dict[fx.Node, np.ndarray] = {}
    uses: dict[str, int] = {}
    for call in calls.values():
        uses[call.path] = uses.get(call.path, 0) + 1
    for node in graph_of(model).nodes:
        shape = shapes.get(node)
        if shape is None:
            # Not a single tensor: its inputs keep their scales.
            _pin_inputs(channels, value_of, node)
            continue
        count = shape[1] if len(shape) > 1 else 1
        if node in calls:
            value_of[node] = channels.new(count)
            _tie_layer(channels, value_of, calls[node], uses, shapes)
            continue
        found = _through(model, node, value_of, shapes)
        if found is None:
            value_of[node] = channels.new(count)
            channels.pin(value_of[node])
            _pin_inputs(channels, value_of, node)
            continue
        value_of[node] = found[0]
        for other in found[1:]:
            channels.tie(found[0], other)
    return channels, value_of


def _pin_inputs(channels: _Channels, value_of: dict[fx.Node, np.ndarray], node: fx.Node) -> None:
    for source in node.all_input_nodes:
        if source in value_of:
            channels.pin(value_of[source])


def _tie_layer(
    channels: _Channels,
    value_of: dict[fx.Node, np.ndarray],
    call: LayerCall,
    uses: dict[str, int],
    shapes: dict[fx.Node, torch.Size],
) -> None:
    """Pin both sides of a layer that is shared, or whose channels are elsewhere."""
    given = value_of[call.input_node]
    norm = call.batch_norm
    has_gain = norm is None or getattr(norm, "weight", None) is not None
    alone = uses[call.path] == 1 and call.has_own_weight
    is_last = call.channel_axis == -1 and (call.weight.dim(), len(shapes[call.input_node])) != (
        2,
        2,
    )
    if not alone or is_last or len(given) != _num_inputs(call):
        channels.pin(given)
        channels.pin(value_of[call.node])
    elif not has_gain or len(value_of[call.node]) != _num_outputs(call):
        channels.pin(value_of[call.node])


def _num_inputs(call: LayerCall) -> int:
    if call.layer.is_transposed:
        return call.weight.shape[0]
    return call.weight.shape[1] * call.layer.num_groups


def _num_outputs(call: LayerCall) -> int:
    return call.layer.rows(call.weight).shape[0]


def _through(
    model: GraphModel,
    node: fx.Node,
    value_of: dict[fx.Node, np.ndarray],
    shapes: dict[fx.Node, torch.Size],
) -> list[np.ndarray] | None:
    """Channels of a value that hold what its inputs' do, one list per input; None if unknown."""
    module, traits = module_of(model, node), traits_of(node)
    sources = [n for n in node.all_input_nodes if n in value_of]
    if not sources or node.op == "output":
        return None
    if isinstance(module, FakeQuantize) and not _is_homogeneous(module):
        return None
    count = shapes[node][1] if len(shapes[node]) > 1 else 1
    if operation_of(node) is CAT:
        if argument(node, "dim") not in (1, 1 - len(shapes[node])):
            return None
        return [np.concatenate([value_of[n] for n in argument(node, "tensors")])]
    if traits.keeps_order and _flattens(shapes[sources[0]], shapes[node]):
        return [np.repeat(value_of[sources[0]], count // len(value_of[sources[0]]))]
    if not traits.keeps_channels or any(len(value_of[n]) != count for n in sources):
        return None
    ranks = {len(shapes[n]) for n in sources}
    if len(ranks) > 1 or min(len(shapes[node]), *ranks) < 2 or _mixes_channels(node, *ranks):
        return None
    return [value_of[n] for n in sources]


def _mixes_channels(node: fx.Node, rank: int) -> bool:
    """Return True for a mean or sum over other axes than an image's, and for padded channels."""
    given = arguments(node)
    if operation_of(node) in (MEAN, SUM):
        dims = given["dim"] if isinstance(given["dim"], tuple | list) else [given["dim"]]
        return not dims or any(not isinstance(d, int) or d % rank < 2 for d in dims)
    pads = given.get("pad", ())
    return not isinstance(pads, tuple | list) or len(pads) > 2 * (rank - 2)


def _flattens(before: torch.Size, after: torch.Size) -> bool:
    """Return True if a value (N, C, ...) becomes (N, C * ...)."""
    return (
        len(before) >= 2
        and len(after) == 2
        and before[0] == after[0]
        and math.prod(before[1:]) == after[1]
    )


def _is_homogeneous(quantizer: FakeQuantize) -> bool:
    """True if the activation in a quantizer lets positive factors through, but for a bound."""
    return quantizer.spec.fixed_range is None and (
        quantizer.bounds is None or quantizer.bounds[0] == 0.0
    )


def _bounded_quantizers(model: GraphModel) -> list[tuple[fx.Node, FakeQuantize]]:
    found = []
    for node in graph_of(model).nodes:
        module = module_of(model, node)
        if isinstance(module, FakeQuantize) and _is_homogeneous(module) and module.has_upper_bound:
            found.append((node, module))
    return found


def _group_ranges(
    model: GraphModel,
    value_of: dict[fx.Node, np.ndarray],
    groups: np.ndarray,
    batches: Batches,
) -> Tensor:
    """Largest magnitude of each group behind the activation functions, float32, ``(groups,)``."""
    largest = torch.zeros(int(groups.max()) + 1)
    hooks: list[tuple[nn.Module, Hook]] = []
    for node in graph_of(model).nodes:
        module = module_of(model, node)
        if node not in value_of or not isinstance(module, FakeQuantize):
            continue
        index = torch.from_numpy(groups[value_of[node]]).long()

        def hook(_m: nn.Module, _a: Any, output: Tensor, index: Tensor = index) -> None:
            if output.dim() < 2 or output.shape[1] != index.numel():
                return
            values = output.detach().float().abs().transpose(0, 1).flatten(1).amax(1)
            largest.scatter_reduce_(0, index, values.cpu(), "amax")

        hooks.append((module, hook))
    run_in_float(model, batches, hooks)
    return largest


def _group_limits(
    model: GraphModel, value_of: dict[fx.Node, np.ndarray], groups: np.ndarray
) -> Tensor:
    """Largest scale of each group with which no bound comes inside the range; infinite without."""
    limits = torch.full((int(groups.max()) + 1,), torch.inf)
    for node, quantizer in _bounded_quantizers(model):
        index = torch.from_numpy(groups[value_of[node]]).long()
        bounds = quantizer.upper_bounds(index.numel()).float().cpu()
        limits.scatter_reduce_(0, index, bounds, "amin")
    return limits


def _choose_scales(
    calls: dict[fx.Node, LayerCall],
    value_of: dict[fx.Node, np.ndarray],
    groups: np.ndarray,
    ranges: Tensor,
    limits: Tensor,
) -> Tensor:
    """Scale of each group, float32; 1 for what is pinned or never holds anything."""
    scales = ranges / FILLED
    for call in calls.values():
        index = torch.from_numpy(groups[value_of[call.node]]).long()
        own = scales[index]
        scales.scatter_reduce_(0, index, own.amax() * SMALLEST * torch.ones_like(own), "amax")
    for call in calls.values():
        index = torch.from_numpy(groups[value_of[call.node]]).long()
        given = torch.from_numpy(groups[value_of[call.input_node]]).long()
        if (len(given), len(index)) != (_num_inputs(call), _num_outputs(call)):
            continue  # pinned
        weight = call.folded().weight
        seen = call.layer.input_channels(scales[given].clamp_min(1e-30).to(weight), weight)
        rows = call.layer.rows(weight * seen).abs().amax(1).float().cpu()
        most = ROW_LIMIT * torch.median(rows / scales[index].clamp_min(1e-30))
        scales.scatter_reduce_(0, index, rows / most.clamp_min(1e-30), "amax")
    scales = torch.minimum(scales, limits / FILLED)
    scales[groups[_PINNED]] = 1.0
    return torch.where(scales > 0, scales, torch.ones_like(scales))


def _rescale(call: LayerCall, given: Tensor, made: Tensor) -> bool:
    """Multiply a layer's input channels by `given` and divide its output channels by `made`."""
    if bool((given == 1).all()) and bool((made == 1).all()):
        return False
    weight, bias, layer, norm = call.weight, call.bias, call.layer, call.batch_norm
    given, made = given.to(weight), made.to(weight)
    weight *= layer.input_channels(given, weight)
    if norm is None:
        weight /= layer.channels(made, weight)
        if bias is not None:
            bias.div_(made)
        return True
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    for parameter in (norm.weight, norm.bias):
        if parameter is not None:
            parameter.div_(made)
    return True
