"""Published torchvision checkpoints load: our names and shapes are theirs, and so is the output."""

from pathlib import Path

import pytest
import torch
from torch import nn

from edgeailite.models import create_model
from edgeailite.models.classification.regnet import TORCHVISION_NAMES
from edgeailite.xnn.utils import load_weights

GOLDENS = Path(__file__).parents[2] / "goldens"

# ours -> theirs, and the option that makes the two compute the same
TWINS = {
    "mobilenetv2_tv_x1": ("torchvision/mobilenet_v2", {"activation": nn.ReLU6}),
    "resnet18_x1": ("torchvision/resnet18", {}),
    "resnet50_x1": ("torchvision/resnet50", {}),
    "mobilenetv3_large_x1": ("torchvision/mobilenet_v3_large", {}),
    "mobilenetv3_small_x1": ("torchvision/mobilenet_v3_small", {}),
    "vgg16_x1": ("torchvision/vgg16_bn", {}),
    "shufflenetv2_x1p0": ("torchvision/shufflenet_v2_x1_0", {}),
    "shufflenetv2_x1p5": ("torchvision/shufflenet_v2_x1_5", {}),
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


@pytest.mark.parametrize("size", ["800mf", "1p6gf", "3p2gf"])
def test_regnets_of_torchvision_load_by_their_rename_table(size):
    twin_name = f"torchvision/regnet_x_{size.replace('p', '_')}"
    twin = create_model(twin_name, num_classes=10).eval()
    ours = create_model(f"regnetx{size}_x1", num_classes=10).eval()
    load_weights(
        ours, twin.state_dict(), change_names_dict=TORCHVISION_NAMES, strict=True, verbose=False
    )
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(x), twin(x))


def test_regnet_has_the_names_of_pycls(request):
    golden = GOLDENS / "pycls_regnetx_400mf.txt"
    model = create_model("regnetx400mf_x1")
    if request.config.getoption("--update-goldens"):
        golden.write_text("\n".join(keys(model)) + "\n")
    assert keys(model) == golden.read_text().splitlines()
    names = set(model.state_dict())
    published = ("stem.conv.weight", "s1.b1.proj.weight", "s1.b1.bn.weight", "s4.b12.f.c_bn.bias")
    assert {*published, "head.fc.weight", "s2.b1.f.a_bn.running_mean"} <= names


def test_a_checkpoint_of_pycls_is_found_under_its_key(tmp_path):
    model = create_model("regnetx400mf_x1", num_classes=10)
    torch.save({"model_state": model.state_dict(), "epoch": 99}, tmp_path / "model.pyth")
    other = create_model("regnetx400mf_x1", num_classes=10)
    load_weights(other, tmp_path / "model.pyth", strict=True, verbose=False)
    assert torch.equal(other.head.fc.weight, model.head.fc.weight)


def test_default_activation_of_mobilenetv2_has_no_upper_bound():
    kinds = {type(m) for m in create_model("mobilenetv2_tv_x1").modules()}
    assert nn.ReLU in kinds
    assert nn.ReLU6 not in kinds
