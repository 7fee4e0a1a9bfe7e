"""A model with a published counterpart computes what that one computes, with the same weights."""

import pytest
import torch
from torch import nn
from torchvision.models.regnet import BlockParams, RegNet

from edgeailite.files.weights import load_weights
from edgeailite.models import create_model, list_models
from edgeailite.models.published import PUBLISHED, PUBLISHED_ENCODERS, UNPUBLISHED
from edgeailite.models.segmentation.encoder import ENCODERS, Encoder

CLASSES = 10
# Widths and depths of the stages and width of a group, as pycls' files have them.
PYCLS = {
    "RegNetX-400MF": ([32, 64, 160, 384], [1, 2, 7, 12], 16),
    "RegNetX-800MF": ([64, 128, 288, 672], [1, 3, 7, 5], 16),
    "RegNetX-1.6GF": ([72, 168, 408, 912], [2, 4, 10, 2], 24),
    "RegNetX-3.2GF": ([96, 192, 432, 1008], [2, 6, 15, 2], 48),
}


def published(name):
    """The counterpart with random weights and statistics that reach every bound."""
    library, _, model = name.partition("/")
    twin = pycls(model) if library == "pycls" else create_model(name, num_classes=CLASSES)
    for module in twin.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return twin


def pycls(name):
    """A network of pycls, built from torchvision's blocks: it isn't on a package index."""
    widths, depths, group_width = PYCLS[name]
    blocks = BlockParams(depths, widths, [group_width] * 4, [1.0] * 4, [2] * 4)
    return RegNet(blocks, num_classes=CLASSES)


def encoder_of(name):
    """`deeplabv3plus_resnet50_edgeailite` -> `resnet50`."""
    return next((e for e in ENCODERS if name.endswith(f"_{e}_edgeailite")), None)


def test_every_model_answers():
    classifiers = {name for name in list_models() if encoder_of(name) is None}
    assert classifiers == PUBLISHED.keys() | UNPUBLISHED.keys()
    assert not PUBLISHED.keys() & UNPUBLISHED.keys()
    assert PUBLISHED_ENCODERS.keys() == ENCODERS.keys()


def outputs(model, x):
    """In evaluation and in training mode, the same dropout for every model."""
    with torch.no_grad():
        evaluated = model.eval()(x)
        torch.manual_seed(1)
        return evaluated, model.train()(x)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_give_the_published_outputs_and_statistics(name):
    twin = published(PUBLISHED[name])
    with torch.device("meta"):  # every value comes from the twin
        ours = create_model(name, num_classes=CLASSES)
    ours.to_empty(device="cpu")
    assert load_weights(ours, twin.state_dict(), strict=True, verbose=False).complete
    x = torch.randn(2, 3, 64, 64)
    evaluated, trained = zip(outputs(ours, x), outputs(twin, x), strict=True)
    assert torch.equal(*evaluated)
    assert torch.equal(*trained)
    states = zip(ours.state_dict().values(), twin.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in states)


@pytest.mark.parametrize("name", PUBLISHED_ENCODERS)
def test_published_weights_give_the_published_feature(name):
    twin = published(PUBLISHED_ENCODERS[name]).eval()
    encoder = Encoder(ENCODERS[name]).eval()
    assert not load_weights(encoder, twin.state_dict(), verbose=False).missing
    features = []
    last = {"mobilenetv2_tv": "features.17", "resnet50": "layer4"}.get(name, "trunk_output")
    twin.get_submodule(last).register_forward_hook(lambda *call: features.append(call[-1]))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        twin(x)
        assert torch.equal(encoder(x)[-1], features[0])
