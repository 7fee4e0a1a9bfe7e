import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeailite.quantization import PTCFxModule
from edgeailite.quantization.graph.attention_calls import open_attention
from edgeailite.quantization.graph.capture import capture
from edgeailite.quantization.graph.model import graph_of
from edgeailite.quantization.graph.structure import Example
from edgeailite.quantization.report import build_report
from edgeailite.quantization.verify import verify

TRIANGLE = torch.ones(9, 9, dtype=torch.bool).tril()
OPENED = {
    "plain": {},
    "scale": {"scale": 0.3},
    "bias": {"attn_mask": torch.linspace(-1, 1, 81).reshape(9, 9)},
    "boolean mask": {"attn_mask": TRIANGLE},
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
    open_attention(captured)
    assert calls(captured) == 0
    torch.testing.assert_close(captured(x), expected)


@pytest.mark.parametrize("options", [{"is_causal": True}, {"dropout_p": 0.5}])
def test_other_calls_stay(options):
    captured = capture(Attention(options))
    open_attention(captured)
    assert calls(captured) == 1


def test_a_mask_that_depends_on_the_input_stays():
    class Masked(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x, attn_mask=x @ x.transpose(1, 2) > 0)

    captured = capture(Masked())
    open_attention(captured)
    assert calls(captured) == 1


@pytest.mark.parametrize("preset", ["WC8_AT8", "WT8SYMP2_AT8SYMP2"])
@pytest.mark.parametrize("name", ["plain", "bias", "boolean mask"])
def test_attention_is_integers_in_evaluation_and_in_files(name, preset, tmp_path):
    torch.manual_seed(0)
    model, x = Attention(OPENED[name]), torch.randn(4, 9, 8)
    original = copy.deepcopy(model)
    wrapper = PTCFxModule(model, qconfig_type=preset, example_inputs=x, verbose=False)
    wrapper.calibrate([x])
    found = verify(wrapper, [x], wrapper.export(x, tmp_path / "m.onnx"))
    assert found.mismatches["evaluation vs integer graph"] == 0
    assert found.mismatches["integer graph vs ONNX Runtime, optimizations on"] == 0
    assert build_report(wrapper, [x]).floats == {}
    torch.testing.assert_close(wrapper(x), original(x), atol=0.1, rtol=0.1)
