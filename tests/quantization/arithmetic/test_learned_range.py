import math

import pytest
import torch
from torch import nn

from edgeailite.quantization.arithmetic.fake_quantize import learned_fake_quantize
from edgeailite.quantization.arithmetic.learned_range import simulate_learned, with_range_gradient
from edgeailite.quantization.arithmetic.qparams import activation_qparams
from edgeailite.quantization.arithmetic.spec import BiasSpec, QuantSpec
from edgeailite.quantization.arithmetic.weights import damped, fake_quantize_weight
from edgeailite.quantization.modules.activation import BATCHES_BEFORE_LEARNING, FakeQuantize
from edgeailite.quantization.modules.layer import QuantLayer
from tests.quantization.arithmetic.formulas import integers, quantized

SPECS = {
    "step": QuantSpec(4, True, power_of_two=False, learned=True),
    "unsigned step": QuantSpec(4, False, power_of_two=False, learned=True),
    "affine step": QuantSpec(4, symmetric=False, power_of_two=False, learned=True),
    "threshold": QuantSpec(4, True, learned=True),
    "sign by statistics": QuantSpec(4, learned=True),
    "affine threshold": QuantSpec(4, symmetric=False, learned=True),
}


@pytest.mark.parametrize("rounding", ["half_even", "half_up", "half_away"])
def test_step_and_origin_receive_the_written_gradients(rounding):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 4, generator=generator).requires_grad_()
    upstream = torch.randn(x.shape, generator=generator)
    scale = torch.tensor(0.2, requires_grad=True)
    zero_point = torch.tensor(-2.0, requires_grad=True)
    y = learned_fake_quantize(x, scale, zero_point, -8, 7, rounding, 0.5)
    y.backward(upstream)
    real = (x / scale).detach()
    clamped = torch.from_numpy(integers(x, 0.2, -8, 7, rounding, -2) + 2)
    torch.testing.assert_close(y.detach(), clamped * 0.2)
    inside = (real > -6.5) & (real < 9.5)
    step = torch.where(inside, clamped - real, clamped)
    assert x.grad.equal(upstream * inside)
    assert scale.grad == pytest.approx(0.5 * float((upstream * step).sum()), rel=1e-4)
    origin = -float((upstream * ~inside).sum()) * 0.2 * 0.5
    assert zero_point.grad == pytest.approx(origin, rel=1e-4)


def test_steps_of_channels_receive_their_own_gradients():
    weight = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([0.1, -0.2, 0.3]).reshape(3, 1, 1, 1).requires_grad_()
    y = learned_fake_quantize(weight, scale, torch.zeros(()), -8, 7, "half_even", 1.0)
    assert y.detach().equal(quantized(weight, scale.detach(), -8, 7, "half_even"))
    y.sum().backward()
    for channel in range(3):
        own = scale.detach()[channel].clone().requires_grad_()
        part = learned_fake_quantize(weight[channel], own, torch.zeros(()), -8, 7, "half_even", 1.0)
        part.sum().backward()
        torch.testing.assert_close(scale.grad[channel], own.grad)


@pytest.mark.parametrize("name", SPECS)
def test_gradient_of_the_range_is_the_slope_of_the_error(name):
    # Of a sum over many values, the estimate is near the true slope, taken over several steps.
    spec, generator = SPECS[name], torch.Generator().manual_seed(3)
    x = torch.randn(20000, generator=generator)
    if name == "unsigned step":
        x = x.abs()
    clips = torch.tensor([-0.9, 0.95] if x.min() < 0 else [0.0, 0.95], requires_grad=True)

    def loss(clips):
        grid = activation_qparams(clips.detach(), spec)
        scale, zero_point = with_range_gradient(grid, clips, spec)
        y = simulate_learned(x, scale, zero_point, spec, 1)
        return (y - x).square().sum() * math.sqrt(max(-spec.quant_min, spec.quant_max))

    loss(clips).backward()
    # The range is too narrow: it is to grow, at its upper end at least.
    assert clips.grad[1] < 0
    if spec.power_of_two:
        assert loss(clips.detach() * 2) < loss(clips.detach())
        return
    moved = clips.detach() - 0.05 * clips.grad / clips.grad.norm()
    assert loss(moved) < loss(clips.detach())


@pytest.mark.parametrize("name", SPECS)
def test_a_quantizer_learns_the_range_with_the_least_error(name):
    spec, generator = SPECS[name], torch.Generator().manual_seed(0)
    quantizer = FakeQuantize(spec)
    assert "clips_act" in dict(quantizer.named_parameters())
    x = torch.randn(8, 512, generator=generator)
    x[0, 0] = 30.0  # statistics begin with an outlier
    x = x.abs() if spec.signed is False else x
    optimizer = torch.optim.Adam(quantizer.parameters(), 0.2)

    def error():
        quantizer.eval()
        with torch.no_grad():
            return float((quantizer(x) - x).square().mean())

    for step in range(BATCHES_BEFORE_LEARNING + 300):
        quantizer.train() if step == 0 else None
        quantizer.training = True
        if step == BATCHES_BEFORE_LEARNING:
            first = error()
            quantizer.training = True
        loss = (quantizer(x) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if step < BATCHES_BEFORE_LEARNING:
            assert not quantizer.clips_act.grad.any()
        else:
            optimizer.step()
    assert error() < 0.5 * first


def test_a_frozen_range_stays_and_still_has_a_gradient():
    quantizer = FakeQuantize(SPECS["step"]).train()
    x = torch.randn(4, 64)
    for _ in range(BATCHES_BEFORE_LEARNING):
        quantizer(x)
    quantizer.observer_enabled = False
    quantizer(x).sum().backward()
    assert not quantizer.clips_act.grad.any()
    with torch.no_grad():
        before = quantizer.clips_act.clone()
        quantizer(x * 10)
    assert quantizer.clips_act.equal(before)


def test_the_bound_of_an_absorbed_relu6_takes_no_part():
    spec = QuantSpec(8, False, learned=True)
    x = torch.tensor([[-1.0, 3.0, 7.0, 100.0]], requires_grad=True)
    learned, plain = FakeQuantize(spec, (0.0, 6.0)), FakeQuantize(spec, (0.0, 6.0))
    for quantizer in (learned, plain):
        quantizer.clips_act.data.copy_(torch.tensor([0.0, 8.0]))
        quantizer.num_batches_tracked.fill_(20.0)
    y = learned.train()(x)
    with torch.no_grad():
        assert y.equal(plain.eval()(x))
    y.sum().backward()
    assert x.grad.tolist() == [[0.0, 1.0, 0.0, 0.0]]


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("power_of_two", [False, True])
def test_a_layer_learns_its_weight_range(granularity, power_of_two):
    torch.manual_seed(0)
    spec = QuantSpec(4, True, granularity, power_of_two=power_of_two, learned=True)
    layer, batch_norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    nn.init.uniform_(batch_norm.weight, 0.5, 2.0)
    layer = QuantLayer.from_float(layer, spec, BiasSpec())
    layer.set_weight_range(torch.ones(4))
    assert isinstance(layer.weight_range, nn.Parameter)
    x = torch.randn(2, 3, 8, 8)
    for frozen in (False, True):
        batch_norm.train(not frozen)
        layer.weight_range.grad = None
        layer(x, batch_norm).square().mean().backward()
        grad = layer.weight_range.grad
        assert grad.isfinite().all()
        assert grad.abs().min() > 0
        if granularity == "per_tensor":
            assert grad.unique().numel() == 1


def test_a_checkpoint_without_ranges_leaves_them():
    layer = QuantLayer.from_float(nn.Linear(3, 2), QuantSpec(4, True, learned=True), BiasSpec())
    layer.set_weight_range(torch.tensor([1.0, 2.0]))
    layer.weight_quantizer.range_was_given = False
    layer.load_state_dict(nn.Linear(3, 2).state_dict())
    assert layer.weight_range.tolist() == [1.0, 2.0]
    assert not layer.weight_quantizer.range_was_given
    layer.load_state_dict({**layer.state_dict(), "weight_range": torch.tensor([3.0, 3.0])})
    assert layer.weight_range.tolist() == [3.0, 3.0]
    assert layer.weight_quantizer.range_was_given


def test_damping_draws_to_the_grid_and_leaves_what_is_outside():
    weight = torch.tensor([0.26, -0.4, 5.0], requires_grad=True)
    scale = torch.tensor(0.5)
    quantized = fake_quantize_weight(weight, scale, -8, 7, "half_even")
    damped(quantized, weight, scale, -8, 7, 0.1).sum().backward()
    # Beside the loss's: 2 * 0.1 * (w - Q(w)); Q = 0.5, -0.5, 3.5.
    expected = torch.tensor([1.0 + 0.2 * (0.26 - 0.5), 1.0 + 0.2 * (-0.4 + 0.5), 0.0])
    torch.testing.assert_close(weight.grad, expected)


def test_a_fixed_range_cannot_be_learned():
    with pytest.raises(ValueError, match=r"fixed_range is .* and learned is True"):
        QuantSpec(fixed_range=(0.0, 4.0), learned=True)
