import pytest
import torch
import torchvision

from edgeailite.models import create_model
from references.edgeailite.engine.distributed import Process
from references.edgeailite.engine.model import build_model, make_optimizer
from references.edgeailite.engine.options_classification import ClassificationOptions
from references.edgeailite.engine.options_segmentation import SegmentationOptions

CPU = Process(torch.device("cpu"))


def _options(kind, name, weights, **more):
    return kind(model_name=name, pretrained=str(weights), **more)


@pytest.fixture(scope="module")
def regnet(tmp_path_factory):
    """A RegNetX with torchvision's names."""
    path = tmp_path_factory.mktemp("weights") / "regnet.pth"
    torch.save(torchvision.models.regnet_x_800mf(num_classes=3).state_dict(), path)
    return path


@pytest.mark.parametrize("quantize", [False, True])
def test_torchvision_names_are_changed(regnet, quantize):
    more = {"quantize": quantize, "img_crop": (32,)}
    options = _options(ClassificationOptions, "regnetx800mf_x1", regnet, **more)
    model = build_model(options, 3, CPU.device)
    inner = model.module if quantize else model
    weights = torch.load(regnet, weights_only=True)
    ours = inner.state_dict()
    assert torch.equal(ours["stem.conv.weight"], weights["stem.0.weight"])
    assert torch.equal(ours["head.fc.weight"], weights["fc.weight"])


def test_classifier_fills_the_encoder_whatever_its_names(regnet, tmp_path):
    name = "deeplabv3plus_regnetx800mf_edgeailite"
    options = _options(SegmentationOptions, name, regnet)
    state = build_model(options, 19, CPU.device).state_dict()
    weights = torch.load(regnet, weights_only=True)
    assert torch.equal(state["encoder.stem.conv.weight"], weights["stem.0.weight"])
    own = tmp_path / "own.pth"
    torch.save(create_model("regnetx800mf_x1", num_classes=3).state_dict(), own)
    state = build_model(_options(SegmentationOptions, name, own), 19, CPU.device).state_dict()
    weights = torch.load(own, weights_only=True)
    assert torch.equal(state["encoder.s1.b1.proj.weight"], weights["s1.b1.proj.weight"])


@pytest.mark.parametrize("optimizer", ["sgd", "sgd_nesterov", "adam", "rmsprop"])
def test_optimizer_has_what_is_to_be_learned(optimizer):
    model = torch.nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    made = make_optimizer(model, ClassificationOptions(optimizer=optimizer, lr=0.5))
    assert [p for group in made.param_groups for p in group["params"]] == [model.weight]
    assert made.param_groups[0]["lr"] == 0.5
