import pytest
import torch
from torch import nn

from edgeailite.quantization.arithmetic.fold import channel_view, fold_bias, weight_rows
from edgeailite.quantization.arithmetic.spec import BiasSpec, QuantSpec
from edgeailite.quantization.graph.patterns import is_foldable
from edgeailite.quantization.modules.layer import QUANT_LAYERS, QuantLayer
from edgeailite.quantization.modules.normalization import gain_and_offset
from tests.quantization.helpers import randomize_batch_norms
from tests.quantization.zoo import BATCH_NORMS, CONVOLUTIONS, TRANSPOSED

LAYERS = {
    **{f"conv{d}d": (lambda d=d: CONVOLUTIONS[d](4, 6, 3)) for d in (1, 2, 3)},
    **{
        f"grouped{d}d": (lambda d=d: CONVOLUTIONS[d](4, 6, 3, groups=2, bias=False))
        for d in (1, 2, 3)
    },
    **{f"depthwise{d}d": (lambda d=d: CONVOLUTIONS[d](4, 8, 3, groups=4)) for d in (1, 2, 3)},
    **{f"transposed{d}d": (lambda d=d: TRANSPOSED[d](4, 6, 3, stride=2)) for d in (1, 2, 3)},
    **{
        f"transposed_grouped{d}d": (lambda d=d: TRANSPOSED[d](4, 6, 3, groups=2)) for d in (1, 2, 3)
    },
    **{
        f"transposed_depthwise{d}d": (lambda d=d: TRANSPOSED[d](4, 8, 3, groups=4))
        for d in (1, 2, 3)
    },
    "linear": lambda: nn.Linear(4, 6),
}


def make(name: str, affine: bool = True) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    layer = LAYERS[name]().double()
    dims = layer.weight.dim() - 2
    channels = getattr(layer, "out_channels", 6)
    norm = BATCH_NORMS[max(dims, 1)](channels, affine=affine, eps=3e-3)
    randomize_batch_norms(norm).double().eval()
    return layer, norm, torch.randn(3, 4, *[6] * dims, dtype=torch.float64)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("name", list(LAYERS))
def test_folding_equals_evaluation(name, affine):
    """In float64; gains are negative and zero, too."""
    layer, norm, x = make(name, affine)
    expected = norm(layer(x))
    if affine:
        assert float(norm.weight.detach().min()) < 0
        assert 0.0 in norm.weight.tolist()
    gain, offset = gain_and_offset(norm)
    transposed, groups = getattr(layer, "transposed", False), getattr(layer, "groups", 1)
    folded = layer.weight * channel_view(gain, layer.weight, transposed, groups)
    layer = QuantLayer.from_float(layer, QuantSpec(signed=True), BiasSpec())
    actual = layer.operate(x, folded, fold_bias(layer.bias, gain, offset))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", list(LAYERS))
def test_rows_are_the_weights_of_one_output_channel(name):
    layer, _, x = make(name)
    transposed, groups = getattr(layer, "transposed", False), getattr(layer, "groups", 1)
    rows = weight_rows(layer.weight, transposed, groups)
    channels = getattr(layer, "out_channels", 6)
    assert rows.shape == (channels, layer.weight.numel() // channels)
    marks = torch.arange(1.0, channels + 1, dtype=torch.float64)
    marked = channel_view(marks, layer.weight, transposed, groups).expand_as(layer.weight)
    assert torch.equal(
        weight_rows(marked.contiguous(), transposed, groups), marks[:, None].expand_as(rows)
    )
    # The view marks what feeds each output channel: with such weights a channel's output is that
    # many times ones'.
    ones = torch.ones_like(layer.weight)
    layer = QuantLayer.from_float(layer, QuantSpec(signed=True), BiasSpec())
    y, y_marked = layer.operate(x, ones, None), layer.operate(x, ones * marked, None)
    torch.testing.assert_close(y_marked, y * marks.reshape(-1, *[1] * (x.dim() - 2)))


def test_gain_is_differentiable():
    norm = nn.BatchNorm2d(3)
    gain, offset = gain_and_offset(norm)
    (gain.sum() + offset.sum()).backward()
    assert norm.weight.grad is not None
    assert norm.bias.grad.tolist() == [1.0, 1.0, 1.0]


def test_only_running_statistics_fold():
    assert is_foldable(nn.BatchNorm2d(3))
    assert not is_foldable(nn.BatchNorm2d(3, track_running_stats=False))


def test_every_quantizing_layer_has_a_case():
    assert {type(LAYERS[name]()) for name in LAYERS} == set(QUANT_LAYERS)
