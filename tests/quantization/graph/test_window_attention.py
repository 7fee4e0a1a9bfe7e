import pytest
import torch
from torch import nn
from torchvision.models.swin_transformer import (
    PatchMerging,
    PatchMergingV2,
    ShiftedWindowAttention,
    ShiftedWindowAttentionV2,
)

from edgeailite.quantization.graph.capture import capture
from edgeailite.quantization.graph.window_attention import patch_merging, window_attention
from edgeailite.quantization.wrappers import PTCFxModule


class Attends(nn.Module):
    def __init__(self, shift, kind=ShiftedWindowAttention):
        super().__init__()
        self.attention = kind(16, [4, 4], shift, 2)
        for parameter in self.attention.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, x):
        return self.attention(x)


@pytest.mark.parametrize("kind", [ShiftedWindowAttention, ShiftedWindowAttentionV2])
@pytest.mark.parametrize("shift", [[0, 0], [2, 2], [2, 0], [0, 1]])
@pytest.mark.parametrize("size", [(8, 8), (4, 4), (4, 12), (7, 9), (3, 5)])
def test_opened_window_attention_equals_torchvisions(shift, size, kind):
    model, x = Attends(shift, kind).eval(), torch.randn(2, *size, 16)
    expected = model(x)
    torch.testing.assert_close(window_attention(model.attention, x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(capture(model)(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [PatchMerging, PatchMergingV2])
@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_opened_patch_merging_equals_torchvisions(size, kind):
    model, x = nn.Sequential(kind(16)).eval(), torch.randn(2, *size, 16)
    assert torch.equal(patch_merging(model[0], x), model(x))
    assert torch.equal(capture(model)(x), model(x))


def test_one_graph_serves_every_size_and_batch():
    model = Attends([2, 2]).eval()
    captured = capture(model)
    for shape in [(1, 8, 8, 16), (3, 5, 10, 16), (2, 4, 4, 16)]:
        x = torch.randn(shape)
        torch.testing.assert_close(captured(x), model(x), rtol=1e-5, atol=1e-5)


def test_weights_are_quantized_and_keys_stay(tmp_path):
    model = Attends([2, 2])
    keys = list(model.state_dict())
    wrapper = PTCFxModule(model, qconfig_type="WT8SYMP2_AT8SYMP2").calibrate(
        [torch.randn(2, 8, 8, 16)]
    )
    assert [k for k in wrapper.module.state_dict() if k in keys] == keys
    integer = [m for m in wrapper.convert().modules() if type(m).__name__ == "IntegerLayer"]
    assert len(integer) == 2
    assert wrapper.export(torch.randn(2, 8, 8, 16), tmp_path / "m.onnx").is_file()
