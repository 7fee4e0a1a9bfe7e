import pytest
import torch

from edgeailite.models import create_model
from edgeailite.models.segmentation.encoder import ENCODERS, Encoder
from edgeailite.xnn.utils import load_weights

NETWORKS = {"mobilenetv2_tv": "mobilenetv2_tv_x1", "resnet50": "resnet50_x1"}
NETWORKS |= {name: f"{name}_x1" for name in ENCODERS if name.startswith("regnetx")}


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("output_stride", [32, 16])
def test_features_have_the_strides_and_channels_that_are_stated(name, output_stride):
    encoder = Encoder(ENCODERS[name], output_stride).eval()
    with torch.no_grad():
        features = encoder(torch.zeros(1, 3, 64, 96))
    strides = (2, 4, 8, 16, output_stride)
    assert [f.shape[1] for f in features] == list(encoder.channels)
    assert [f.shape[2:] for f in features] == [(64 // s, 96 // s) for s in strides]


@pytest.mark.parametrize("name", ["mobilenetv2_tv", "resnet50", "regnetx400mf"])
def test_weights_of_the_classifier_fill_the_encoder(name):
    encoder = Encoder(ENCODERS[name]).eval()
    network = create_model(NETWORKS[name]).eval()
    report = load_weights(encoder, network.state_dict(), verbose=False)
    assert not report.missing
    assert not report.other_shape
    outputs = {}
    last = ENCODERS[name].stages[-1][-1]
    hook = lambda _module, _inputs, output: outputs.update(last=output)  # noqa: E731
    network.get_submodule(last).register_forward_hook(hook)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        network(x)
        assert torch.equal(encoder(x)[-1], outputs["last"])


def test_encoder_is_in_training_mode_with_fresh_statistics():
    encoder = Encoder(ENCODERS["mobilenetv2_tv"])
    assert all(module.training for module in encoder.modules())
    assert not encoder.features[0][1].running_mean.any()
