import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeailite.quantization import PTCFxModule, QATFxModule
from edgeailite.quantization.arithmetic.sqnr import sqnr
from edgeailite.quantization.graph.capture import capture
from edgeailite.quantization.graph.model import graph_of
from edgeailite.quantization.graph.opened_calls import open_calls
from edgeailite.quantization.graph.structure import Example
from edgeailite.quantization.report import build_report
from edgeailite.quantization.verify import verify

TRIANGLE = torch.ones(9, 9, dtype=torch.bool).tril()
OPENED = {
    "plain": {},
    "scale": {"scale": 0.3},
    "bias": {"attn_mask": torch.linspace(-1, 1, 81).reshape(9, 9)},
    "boolean mask": {"attn_mask": TRIANGLE},
    "causal": {"is_causal": True},
    "infinite mask": {"attn_mask": torch.zeros(9, 9).masked_fill(~TRIANGLE, -torch.inf)},
}


class Attention(nn.Module):
    def __init__(self, options):
        super().__init__()
        self.qkv, self.last, self.options = nn.Linear(8, 24), nn.Linear(8, 5), dict(options)
        if "attn_mask" in options:
            self.register_buffer("mask", self.options.pop("attn_mask"))

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        mask = (self.mask,) if hasattr(self, "mask") else ()
        y = F.scaled_dot_product_attention(q, k, v, *mask, **self.options)
        return self.last(y.transpose(1, 2).flatten(2))


def check_integers(model, preset, tmp_path):
    """Nothing is in float, evaluation and file are equal, and both are close to the model."""
    original, x = copy.deepcopy(model), torch.randn(4, 9, 8)
    wrapper = PTCFxModule(model, qconfig_type=preset, example_inputs=x, verbose=False)
    wrapper.calibrate([x])
    found = verify(wrapper, [x], wrapper.export(x, tmp_path / "m.onnx"))
    assert found.mismatches["evaluation vs integer graph"] == 0
    assert found.mismatches["integer graph vs ONNX Runtime, optimizations on"] == 0
    assert build_report(wrapper, [x]).floats == {}
    with torch.no_grad():
        torch.testing.assert_close(wrapper(x), original(x), atol=0.1, rtol=0.1)
        assert sqnr(original(x), wrapper(x)) > 28


def calls(model):
    found = graph_of(model).find_nodes(op="call_function", target=F.scaled_dot_product_attention)
    return len(found)


@pytest.mark.parametrize("name", OPENED)
def test_an_opened_call_gives_what_the_function_gives(name):
    model, x = Attention(OPENED[name]).eval(), torch.randn(2, 9, 8)
    captured = capture(model, example=Example((x,)))
    expected = captured(x)
    assert torch.equal(expected, model(x))
    assert calls(captured) == 1
    open_calls(captured, lambda operation: True)
    assert calls(captured) == 0
    torch.testing.assert_close(captured(x), expected)


def test_dropout_in_evaluation_stays():
    captured = capture(Attention({"dropout_p": 0.5}))
    open_calls(captured, lambda operation: True)
    assert calls(captured) == 1


def test_a_mask_that_depends_on_the_input_stays():
    class Masked(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x, attn_mask=x @ x.transpose(1, 2) > 0)

    captured = capture(Masked())
    open_calls(captured, lambda operation: True)
    assert calls(captured) == 1


@pytest.mark.parametrize("preset", ["WC8_AT8", "WT8SYMP2_AT8SYMP2"])
@pytest.mark.parametrize("name", ["plain", "bias", "boolean mask", "causal"])
def test_attention_is_integers_in_evaluation_and_in_files(name, preset, tmp_path):
    torch.manual_seed(0)
    check_integers(Attention(OPENED[name]), preset, tmp_path)


class Drops(Attention):
    """Drops weights of attention in training, and has a layer behind it."""

    def forward(self, x):
        self.options["dropout_p"] = 0.5 if self.training else 0.0
        return super().forward(x)


@pytest.mark.parametrize("example", [None, torch.randn(2, 9, 8)])
def test_layers_behind_dropout_of_attention_are_quantized_in_training(example):
    wrapper = QATFxModule(Drops({}), total_epochs=1, example_inputs=example, verbose=False)
    (last,) = [m for m in wrapper.modules() if getattr(m, "out_features", 0) == 5]
    calls = []
    last.register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(2, 9, 8)
    first, second = wrapper.train()(x), wrapper(x)
    assert len(calls) == 2
    assert not torch.equal(first, second)
    assert torch.equal(wrapper.eval()(x), wrapper(x))


HIDES = {
    "masked_fill": lambda scores, seen: scores.masked_fill(~seen, -torch.inf),
    "where": lambda scores, seen: torch.where(seen, scores, -1e9),
    "lowest": lambda scores, seen: scores.masked_fill(~seen, torch.finfo(torch.float32).min),
}


class Masks(nn.Module):
    def __init__(self, hide):
        super().__init__()
        self.qkv, self.last, self.hide = nn.Linear(8, 24), nn.Linear(8, 5), hide
        self.register_buffer("seen", TRIANGLE)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.last(self.hide(q @ k.transpose(1, 2), self.seen).softmax(-1) @ v)


@pytest.mark.parametrize("preset", ["WC8_AT8", "WT8SYMP2_AT8SYMP2"])
@pytest.mark.parametrize("name", ["masked_fill", "where", "lowest"])
def test_what_hides_values_from_a_softmax_is_integers(name, preset, tmp_path):
    torch.manual_seed(0)
    check_integers(Masks(HIDES[name]), preset, tmp_path)


def test_what_hides_values_from_other_readers_stays_in_float():
    class Reads(Masks):
        def forward(self, x):
            scores = self.qkv(x).masked_fill(self.seen[:, :1], -1e4)
            return scores.softmax(-1) + scores.relu()

    wrapper = PTCFxModule(Reads(None), verbose=False).calibrate([torch.randn(4, 9, 8)])
    (reason, *_) = [entry.reason for entry in build_report(wrapper).floats.values()]
    assert "in front of a softmax alone" in reason
