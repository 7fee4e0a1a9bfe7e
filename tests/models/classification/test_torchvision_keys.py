"""Published torchvision checkpoints load: our names and shapes are theirs, and so is the output."""

from pathlib import Path

import pytest
import torch
from torch import nn

from edgeailite.models import create_model

GOLDENS = Path(__file__).parents[2] / "goldens"

# ours -> theirs, and the option that makes the two compute the same
TWINS = {
    "mobilenetv2_tv_x1": ("torchvision/mobilenet_v2", {"activation": nn.ReLU6}),
    "resnet18_x1": ("torchvision/resnet18", {}),
    "resnet50_x1": ("torchvision/resnet50", {}),
}


def keys(model):
    return [f"{name} {tuple(value.shape)}" for name, value in model.state_dict().items()]


@pytest.mark.parametrize("name", TWINS)
def test_state_dict_is_that_of_torchvision(name, request):
    twin, _ = TWINS[name]
    golden = GOLDENS / f"{twin.replace('/', '_')}.txt"
    if request.config.getoption("--update-goldens"):
        golden.write_text("\n".join(keys(create_model(twin))) + "\n")
    assert keys(create_model(name)) == golden.read_text().splitlines()


@pytest.mark.parametrize("name", TWINS)
def test_weights_of_torchvision_give_its_output(name):
    twin_name, options = TWINS[name]
    twin = create_model(twin_name, num_classes=10)
    ours = create_model(name, num_classes=10, **options)
    for module in twin.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
    ours.load_state_dict(twin.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours.eval()(x), twin.eval()(x))


def test_default_activation_of_mobilenetv2_has_no_upper_bound():
    kinds = {type(m) for m in create_model("mobilenetv2_tv_x1").modules()}
    assert nn.ReLU in kinds
    assert nn.ReLU6 not in kinds
