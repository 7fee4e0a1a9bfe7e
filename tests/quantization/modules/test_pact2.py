import copy
import pickle

import pytest
import torch
from torch import nn

from edgeailite.quantization.arithmetic.spec import QuantSpec
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.modules.pact2 import (
    PACT2,
    NoQAct,
    PAct2,
    QAct,
    ReLU1,
    freeze_quant_range,
    get_fixed_pact2_type,
    quantizers,
    unfreeze_quant_range,
)


def on_grid(y: torch.Tensor, step: float) -> bool:
    return torch.equal(y / step, (y / step).round())


@pytest.mark.parametrize("signed", [True, False, None])
def test_output_lies_on_the_documented_grid(signed):
    pact = PACT2(signed=signed, range_shrink_activations=0.0)
    x = torch.randn(1000) * 0.8
    y = pact(x)
    m = 2.0 ** torch.ceil(torch.log2(x.max() if signed is False else x.abs().max())).item()
    low, high = (0.0, m - m / 256) if signed is False else (-m, m - m / 128)
    assert on_grid(y, m / 256 if signed is False else m / 128)
    assert float(y.min()) >= low
    assert float(y.max()) <= high
    assert float((y - x.clamp(low, high)).abs().max()) <= (m / 128) / 2


def test_clip_range_decides_sign_and_needs_no_data():
    pact = PACT2(clip_range=(0, 4))
    assert pact.spec.signed is False
    assert pact(torch.tensor([-1.0, 100.0])).tolist() == [0.0, 4.0 - 4.0 / 256]
    assert float(pact.num_batches_tracked) == -1
    assert PACT2(clip_range=(-1, 1)).spec.signed is True


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_bit_width_sets_the_number_of_values(bits):
    pact = PACT2(signed=True, clip_range=(-1.0, 1.0), bitwidth_activations=bits)
    y = pact(torch.linspace(-2, 2, 300_000))
    assert y.unique().numel() == 2**bits


def test_rounding_argument():
    x = torch.tensor([0.5, 1.5, 2.5]) / 64
    even, up = (PACT2(clip_range=(0, 4), rounding=r)(x) * 64 for r in ("half_even", "half_up"))
    assert even.tolist() == [0, 2, 2]
    assert up.tolist() == [1, 2, 3]


def test_free_range_is_not_rounded_up():
    x = torch.tensor([0.0, 3.0])
    pact = PACT2(signed=False, power2_activation_range=False, range_shrink_activations=0)
    assert pact(x).tolist() == pytest.approx([0.0, 3.0])


def test_range_rule_argument():
    x = torch.randn(4000)
    x[0] = 5.0
    full = PACT2(signed=True, range_shrink_activations=0, bitwidth_activations=4)
    best = PACT2(signed=True, range_rule="mse", bitwidth_activations=4)
    errors = [float((p(x) - x)[1:].square().mean()) for p in (full, best)]
    assert errors[1] < errors[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bitwidth_activations": 1}, "bit_width is 1"),
        ({"range_shrink_activations": 60}, "range_shrink_percentile"),
        ({"clip_range": (1, 1)}, "fixed_range"),
        ({"rounding": "up"}, "rounding is 'up'"),
        ({"range_rule": "kl"}, "range_rule is 'kl'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        PACT2(**arguments)


def test_state_dict_keys_are_the_historical_ones_and_two_flags():
    state = PACT2().state_dict()
    assert set(state) == {
        "clips_act", "num_batches_tracked", "observer_enabled", "fake_quant_enabled"
    }  # fmt: skip
    assert state["clips_act"].dtype == torch.float32
    assert state["clips_act"].shape == (2,)
    assert state["num_batches_tracked"].shape == ()
    assert float(state["num_batches_tracked"]) == -1


def test_flags_and_ranges_travel_in_the_state_dict():
    source, target = PACT2(), PACT2()
    source(torch.tensor([-0.5, 3.0]))
    source.observer_enabled, source.fake_quant_enabled = False, False
    target.load_state_dict(source.state_dict())
    assert target.clips_act.tolist() == [-0.5, 3.0]
    assert target.observer_enabled is False
    assert target.fake_quant_enabled is False


def test_historical_checkpoint_has_no_flags():
    target = PACT2()
    target.observer_enabled = False
    target.load_state_dict(
        {"clips_act": torch.tensor([0.0, 3.0]), "num_batches_tracked": torch.tensor(5.0)}
    )
    assert target.clips_act.tolist() == [0.0, 3.0]
    assert target.observer_enabled is False
    assert target.fake_quant_enabled is True


def test_float_checkpoint_loads_strict():
    model = nn.Sequential(nn.Linear(2, 2), PACT2())
    model.load_state_dict(nn.Linear(2, 2).state_dict(prefix="0."))
    with pytest.raises(RuntimeError, match="Missing"):
        model.load_state_dict({})
    with pytest.raises(RuntimeError, match="Unexpected"):
        model.load_state_dict({**model.state_dict(), "1.something": torch.zeros(1)})


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_have_the_same_outputs(duplicate):
    pact = PACT2()
    pact(torch.randn(100))
    twin = duplicate(pact)
    x = torch.randn(100)
    assert torch.equal(twin.eval()(x), pact.eval()(x))


def test_half_precision_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = PACT2()(torch.randn(10).bfloat16())
    assert y.dtype == torch.float32


def test_freeze_and_unfreeze_spare_fixed_ranges():
    model = nn.Sequential(PACT2(), PACT2(clip_range=(0, 1)))
    freeze_quant_range(model)
    assert [q.observer_enabled for q in quantizers(model).values()] == [False, False]
    unfreeze_quant_range(model)
    assert [q.observer_enabled for q in quantizers(model).values()] == [True, False]


def test_fixed_pact2_type_is_a_layer_factory():
    layer = get_fixed_pact2_type(0.0, 6.0)(inplace=True)
    assert isinstance(layer, PACT2)
    assert layer.spec.fixed_range == (0.0, 6.0)
    signed = get_fixed_pact2_type(-1.0, 1.0, signed=True, power2_activation_range=False)()
    assert signed.spec.signed is True
    assert signed.spec.power_of_two is False


def test_relatives():
    x = torch.tensor([-2.0, 0.5, 2.0])
    assert ReLU1()(x).tolist() == [-1.0, 0.5, 1.0]
    assert QAct()(x) is x
    assert NoQAct()(x) is x
    assert PAct2 is PACT2


def test_inplace_overwrites_its_input():
    x = torch.randn(1000)
    expected = PACT2(clip_range=(-1, 1))(x.clone())
    assert torch.equal(PACT2(inplace=True, clip_range=(-1, 1))(x), expected)
    assert torch.equal(x, expected)


def test_affine_spec_makes_a_plain_quantizer():
    assert type(PACT2.from_spec(QuantSpec(symmetric=False))) is FakeQuantize
    assert type(PACT2.from_spec(QuantSpec())) is PACT2
