import sys

import pytest
import torch
from torch import nn

from edgeailite.models import create_model, list_models, register_model, registry
from edgeailite.models.classification import MobileNetV1, ResNet

WIDTHS = [("_x1", 1.0), ("_x0p25", 0.25), ("_xp5", 0.5), ("_x1p5", 1.5), ("_x2", 2.0)]


@pytest.fixture
def empty_registry(monkeypatch):
    monkeypatch.setattr(registry, "_BUILDERS", {})
    monkeypatch.setattr(registry, "_FAMILIES", {})
    monkeypatch.setattr(registry, "_UNLISTED", set())


def build(num_classes, width_mult=1.0, **options):
    model = nn.Linear(1, num_classes)
    model.width_mult, model.options = width_mult, options
    return model


def test_models_are_listed():
    assert {
        "mobilenetv1_x1",
        "mobilenetv2_tv_x1",
        "mobilenetv2_x1",
        "resnet18_x1",
        "resnet50_x1",
        "resnet50_xp5",
    } <= set(list_models())
    assert list_models("resnet50_x") == ["resnet50_x1", "resnet50_xp5"]


def test_registered_builder_gets_the_options(empty_registry):
    register_model("net")(build)
    model = create_model("net", num_classes=7, strides=(1, 2))
    assert model.out_features == 7
    assert model.options == {"strides": (1, 2)}


@pytest.mark.parametrize(("suffix", "width"), WIDTHS)
def test_width_comes_from_the_name_times_the_argument(empty_registry, suffix, width):
    register_model("net_x1", family="net")(build)
    assert create_model(f"net{suffix}").width_mult == width
    assert create_model(f"net{suffix}", width_mult=0.5).width_mult == width / 2


def test_bare_family_name_has_width_one(empty_registry):
    register_model("net_x1", family="net")(build)
    assert create_model("net").width_mult == 1.0


def test_duplicate_name_raises(empty_registry):
    register_model("net_x1")(build)
    with pytest.raises(ValueError, match="'net_x1' is registered already"):
        register_model("net_x1")(build)


def test_name_of_another_family_raises(empty_registry):
    with pytest.raises(ValueError, match=r"'other_x1' is no name of the family 'net'.*'net_x1'"):
        register_model("other_x1", family="net")(build)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("mobilnetv2_x1", "mobilenetv2_x1"),
        ("resnet5O_x1", "resnet50_x1"),
        ("torchvision/resnet19", "torchvision/resnet1"),
    ],
)
def test_unknown_name_raises_with_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=rf"no model '{name}'\. The nearest: .*{nearest}"):
        create_model(name)


def test_unknown_name_unlike_any_raises():
    with pytest.raises(ValueError, match=r"no model 'qqq'\. list_models\(\) names all"):
        create_model("qqq")


def test_unknown_option_raises():
    with pytest.raises(TypeError, match="stride"):
        create_model("resnet18_x1", stride=(1, 1, 1, 2, 2))


def test_torchvision_model():
    model = create_model("torchvision/squeezenet1_1", num_classes=7).eval()
    assert type(model).__module__ == "torchvision.models.squeezenet"
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 7)


def test_timm_model_without_timm_raises(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    message = r"timm/resnet18 needs timm: pip install 'edgeailite\[timm\]'"
    with pytest.raises(ImportError, match=message):
        create_model("timm/resnet18")


def test_timm_model():
    pytest.importorskip("timm")
    model = create_model("timm/resnet18", num_classes=7).eval()
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 7)
    with pytest.raises(ValueError, match="no model 'timm/resnet18_'"):
        create_model("timm/resnet18_")


def test_families_accept_any_width():
    assert isinstance(create_model("mobilenetv1_x0p25", num_classes=2), MobileNetV1)
    model = create_model("resnet18_x0p25", num_classes=2)
    assert isinstance(model, ResNet)
    assert model.conv1.out_channels == 16


@pytest.mark.usefixtures("empty_registry")
def test_alias_builds_without_being_listed():
    register_model("listed", aliases=("unlisted",))(lambda num_classes: nn.Linear(2, num_classes))
    assert create_model("unlisted", num_classes=3).out_features == 3
    assert list_models() == ["listed"]
