import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeailite.quantization.graph.attention import is_traceable_attention, multihead_attention
from edgeailite.quantization.graph.capture import capture
from edgeailite.quantization.modules.functional_layer import QuantFunctionalLayer
from edgeailite.quantization.report import build_report
from edgeailite.quantization.verify import verify
from edgeailite.quantization.wrappers import PTCFxModule

OPTIONS = [{}, {"batch_first": True}, {"bias": False}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("weights", [{}, {"need_weights": False}, {"average_attn_weights": False}])
def test_opened_attention_equals_the_module(options, weights):
    module, x = nn.MultiheadAttention(24, 4, **options).eval(), torch.randn(5, 3, 24)
    ours, theirs = multihead_attention(module, x, x, x, **weights), module(x, x, x, **weights)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-6)
    if theirs[1] is None:
        assert ours[1] is None
    else:
        torch.testing.assert_close(ours[1], theirs[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "call"),
    [
        ({"add_bias_kv": True}, {}),
        ({"add_zero_attn": True}, {}),
        ({"kdim": 8, "vdim": 8}, {}),
        ({}, {"attn_mask": torch.zeros(5, 5)}),
        ({}, {"key_padding_mask": torch.zeros(3, 5)}),
        ({}, {"is_causal": True}),
    ],
)
def test_attention_with_masks_or_further_keys_is_not_opened(options, call):
    x = torch.randn(5, 3, 24)
    assert is_traceable_attention(nn.MultiheadAttention(24, 4), x, x, x)
    assert not is_traceable_attention(nn.MultiheadAttention(24, 4, **options), x, x, x, **call)


def test_attention_to_another_value_is_not_opened():
    module, x = nn.MultiheadAttention(24, 4), torch.randn(5, 3, 24)
    assert not is_traceable_attention(module, x, torch.randn(5, 3, 24), x)


class Attends(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True, **options)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


def test_weights_of_attention_are_quantized_under_their_own_names():
    model = Attends()
    keys = list(model.state_dict())
    wrapper = PTCFxModule(model)
    layers = [m for m in wrapper.modules() if isinstance(m, QuantFunctionalLayer)]
    assert len(layers) == 2
    assert [k for k in wrapper.module.state_dict() if k in keys] == keys


def test_attention_named_as_a_leaf_stays_whole():
    graph = capture(Attends(), leaf_modules=["attention"]).graph
    assert [str(n.target) for n in graph.find_nodes(op="call_module")] == ["attention"]


def test_dropout_of_attention_follows_the_mode():
    captured, x = capture(Attends(dropout=0.5)), torch.randn(2, 7, 16)
    captured.eval()
    assert torch.equal(captured(x), captured(x))
    captured.train()
    assert not torch.equal(captured(x), captured(x))


class FusedAttention(nn.Module):
    """Attention as one function; `branches` on sizes, which only torch.export captures."""

    def __init__(self, dropout=0.0, branches=False, **options):
        super().__init__()
        self.qkv = nn.Linear(16, 48)
        self.dropout, self.branches, self.options = dropout, branches, options

    def forward(self, x):
        if self.branches and x.shape[1] > 100:
            return x
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, **self.options)
        return y.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("branches", [False, True])
@pytest.mark.parametrize("options", [{}, {"scale": 0.3}, {"dropout": 0.5}])
def test_attention_as_one_function_is_integers_and_equal_everywhere(options, branches, tmp_path):
    x = torch.randn(3, 7, 16)
    model = FusedAttention(branches=branches, **options)
    wrapper = PTCFxModule(model, x, qconfig_type="WT8SYMP2_AT8SYMP2", verbose=False).calibrate([x])
    assert build_report(wrapper).floats == {}
    path = wrapper.export(x, tmp_path / "m.onnx")
    assert verify(wrapper, [x, 2 * x], path).exact


def test_dropout_of_attention_as_one_function_follows_the_mode():
    x = torch.randn(2, 7, 16)
    captured = capture(FusedAttention(dropout=0.5))
    captured.eval()
    assert torch.equal(captured(x), captured(x))
    captured.train()
    assert not torch.equal(captured(x), captured(x))
