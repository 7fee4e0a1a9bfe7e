"""Published checkpoints load: our names and shapes are those of torchvision and pycls."""

from pathlib import Path

import pytest
import torch

from edgeailite.models import create_model
from edgeailite.models.published import PUBLISHED
from edgeailite.xnn.utils import load_weights

GOLDENS = Path(__file__).parents[2] / "goldens"

# Those whose names are torchvision's own; RegNetX has pycls'.
TORCHVISION = {
    ours: published
    for ours, published in PUBLISHED.items()
    if published.startswith("torchvision/") and not ours.startswith("regnetx")
}


def keys(name):
    with torch.device("meta"):
        model = create_model(name)
    return [f"{name} {tuple(value.shape)}" for name, value in model.state_dict().items()]


@pytest.mark.parametrize("name", TORCHVISION)
def test_state_dict_is_that_of_torchvision(name, request):
    twin = TORCHVISION[name]
    golden = GOLDENS / f"{twin.replace('/', '_')}.txt"
    if request.config.getoption("--update-goldens"):
        golden.write_text("\n".join(keys(twin)) + "\n")
    assert keys(name) == golden.read_text().splitlines()


def test_regnet_has_the_names_of_pycls(request):
    golden = GOLDENS / "pycls_regnetx_400mf.txt"
    names = keys("regnetx400mf_x1")
    if request.config.getoption("--update-goldens"):
        golden.write_text("\n".join(names) + "\n")
    assert names == golden.read_text().splitlines()
    tensors = {name.partition(" ")[0] for name in names}
    published = ("stem.conv.weight", "s1.b1.proj.weight", "s1.b1.bn.weight", "s4.b12.f.c_bn.bias")
    assert {*published, "head.fc.weight", "s2.b1.f.a_bn.running_mean"} <= tensors


def test_a_checkpoint_of_pycls_is_found_under_its_key(tmp_path):
    model = create_model("regnetx400mf_x1", num_classes=10)
    torch.save({"model_state": model.state_dict(), "epoch": 99}, tmp_path / "model.pyth")
    other = create_model("regnetx400mf_x1", num_classes=10)
    load_weights(other, tmp_path / "model.pyth", strict=True, verbose=False)
    assert torch.equal(other.head.fc.weight, model.head.fc.weight)
