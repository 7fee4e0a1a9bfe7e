import torch
from torch import nn

from edgeailite.quantization.methods.bias_correction import correct_biases
from edgeailite.quantization.modules.layer_calls import (
    float_arithmetic,
    layer_calls,
)
from tests.quantization.methods.biases import calibrated_model, means


def test_sequential_correction_leaves_no_difference_of_means():
    torch.manual_seed(0)
    model = calibrated_model(
        nn.Sequential(
            *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1)),
        )
    )
    batches = [(torch.randn(8, 3, 8, 8),), (torch.randn(8, 3, 8, 8),)]
    joint = torch.cat([b[0] for b in batches])
    with float_arithmetic(model):
        target = means(model, joint)
    before = means(model, joint)
    corrected = correct_biases(model, batches)
    after = means(model, joint)
    assert corrected
    calls = {call.path: call for call in layer_calls(model)}
    for path in corrected:
        # What remains is that the bias is rounded to its own grid, before and after.
        call = calls[path]
        step = call.folded().scale * call.input_quantizer.qparams().scale
        assert ((after[path] - target[path]).abs() <= 1.01 * step + 1e-6).all(), path
    assert any((before[p] - target[p]).abs().max() > 1e-3 for p in corrected)
