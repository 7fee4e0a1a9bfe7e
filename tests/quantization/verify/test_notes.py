import torch
from torch import nn

from edgeailite.quantization.verify.notes import model_notes
from edgeailite.quantization.wrappers import QuantCalibrateModule

SHAPE = (4, 3, 8, 8)


def calibrated(**options) -> QuantCalibrateModule:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    return QuantCalibrateModule(model, torch.rand(SHAPE), **options).calibrate([torch.randn(SHAPE)])


def test_notes_tell_of_free_scales_and_saturation():
    free = calibrated(power2_activation_range=False, per_channel_q="all")
    notes = " ".join(model_notes(free.convert().module))
    assert "free scales" in notes
    assert "could saturate" in notes
    assert "free scales" not in " ".join(model_notes(calibrated().convert().module))
