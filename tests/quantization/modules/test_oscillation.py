import copy
import math

import pytest
import torch
from torch import nn

from edgeailite.quantization.arithmetic.spec import BiasSpec, QuantSpec
from edgeailite.quantization.modules.layer import QuantLayer
from edgeailite.quantization.modules.oscillation import RATE, Oscillations


def reference(integers, threshold):
    """The written rule for one weight; returns the iteration in which it freezes, and where."""
    before, direction, frequency, mean = integers[0], 0, 0.0, float(integers[0])
    for step, q in enumerate(integers):
        jump = (q > before) - (q < before)
        frequency += RATE * ((jump * direction < 0) - frequency)
        mean += RATE * (q - mean)
        if frequency > threshold:
            return step, round(mean)
        before, direction = q, jump or direction
    return None, None


def test_each_weight_freezes_when_the_written_rule_says_and_where():
    generator = torch.Generator().manual_seed(0)
    walks = torch.randint(-2, 3, (120, 8), generator=generator).float()
    walks[:, 0] = torch.arange(120)  # a drift is no oscillation
    walks[:, 1] = 3.0
    walks[:, 2] = (torch.arange(120) % 4 == 3).float()  # mostly at 0
    tracked, frozen_at = Oscillations(), [(None, None)] * 8
    for step, walk in enumerate(walks):
        integers = walk.clone()
        if step > 0:
            frozen, points = tracked.frozen(integers.device)
            integers[frozen] = points[frozen]  # as the layer does
        tracked.follow(integers, 0.05)
        frozen, points = tracked.frozen(integers.device)
        for i in torch.nonzero(frozen).flatten().tolist():
            if frozen_at[i][0] is None:
                frozen_at[i] = step, int(points[i])
            assert points[i] == frozen_at[i][1]
    assert frozen_at == [reference(walk.tolist(), 0.05) for walk in walks.T]
    assert frozen_at[0] == frozen_at[1] == (None, None)
    assert frozen_at[2][1] == 0


def oscillating_layer(gain):
    """A layer whose first weight has jumped between 0 and 1, with the batch norm behind it."""
    torch.manual_seed(0)
    spec = QuantSpec(4, True, granularity="per_channel", power_of_two=False)
    layer = QuantLayer.from_float(nn.Conv2d(1, 2, 2, bias=False), spec, BiasSpec())
    norm = nn.BatchNorm2d(2)
    with torch.no_grad():
        layer.weight[:, 0, 0, 0] = 7.0  # the largest: the scale is 1
        norm.weight[0] = gain
    for step in range(41):
        layer.weight_quantizer.freeze_above = 0.1 if step == 39 else math.inf
        with torch.no_grad():
            layer.weight[0, 0, 1, 1] = 0.2 if step % 4 == 1 else 0.8
        layer(torch.randn(2, 1, 4, 4), norm)
    return layer, norm


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("gain", [1.0, -0.5])
def test_a_frozen_weight_stays_at_its_point_without_a_gradient(folded, gain):
    layer, norm = oscillating_layer(gain)
    frozen, _ = layer.weight_quantizer.oscillations.frozen(layer.weight.device)
    assert frozen.nonzero().tolist() == [[0, 0, 1, 1]]
    norm.train(not folded)
    with torch.no_grad():
        layer.weight += 0.3
    layer(torch.randn(2, 1, 4, 4), norm).square().mean().backward()
    _, _, scale = layer.folded(layer.weight, None, norm.eval(), None)
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    integer = layer.weight[0, 0, 1, 1] * factor[0] / scale[0]
    assert abs(integer - integer.round()) < (1e-5 if folded else 0.1)  # the scale has moved since
    assert layer.weight.grad[0, 0, 1, 1] == 0
    assert (layer.weight.grad.flatten() != 0).sum() >= 4


def test_a_dead_channel_keeps_its_weights():
    layer, norm = oscillating_layer(1.0)
    with torch.no_grad():
        norm.weight[0] = 0.0
    before = layer.weight.detach().clone()
    y = layer(torch.randn(2, 1, 4, 4), norm.eval())
    assert layer.weight.equal(before)
    assert y[:, 0].unique().numel() == 1


def test_oscillations_come_and_go_with_checkpoints_and_copies():
    layer, _ = oscillating_layer(1.0)
    state = layer.weight_quantizer.oscillations.state
    other = QuantLayer.from_float(nn.Conv2d(1, 2, 2), QuantSpec(4, True), BiasSpec())
    other.load_state_dict({**layer.state_dict(), "bias": torch.zeros(2)})
    loaded = other.weight_quantizer.oscillations.state
    assert loaded.equal(state)
    assert loaded.data_ptr() != state.data_ptr()
    assert copy.deepcopy(layer).weight_quantizer.oscillations.state.equal(state)
    # Weights from elsewhere have another history.
    layer.load_state_dict(nn.Conv2d(1, 2, 2, bias=False).state_dict())
    assert "oscillations" not in layer.state_dict()
    other.choose_bits(3)
    assert "oscillations" not in other.state_dict()
