"""What may be given to a wrapper: models, wrapped models, and what is refused by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgeailite.quantization.prepare.original import original_model


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())


@pytest.mark.parametrize(
    ("wrap", "maker"),
    [
        (lambda m: torch.compile(m, backend="eager"), "torch.compile"),
        (nn.DataParallel, "DataParallel"),
        (lambda m: nn.DataParallel(torch.compile(m, backend="eager")), "is wrapped by"),
    ],
)
def test_a_wrapped_model_is_unwrapped_with_a_warning(wrap, maker):
    model = network()
    with pytest.warns(UserWarning, match=maker):
        assert original_model(wrap(model)) is model


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_than_float32_are_refused(dtype):
    with pytest.raises(ValueError, match=r"'0.weight' is torch\..*float32.*model\.float\(\)"):
        original_model(network().to(dtype))


def test_models_without_python_modules_or_values_are_refused():
    with pytest.warns(DeprecationWarning, match="jit"):
        scripted = torch.jit.script(network())
    with pytest.raises(ValueError, match="scripted"):
        original_model(scripted)
    with pytest.raises(ValueError, match=r"'0\.weight' is on the meta device"):
        original_model(network().to("meta"))
    lazy = nn.Sequential(nn.LazyConv2d(4, 3))
    with pytest.raises(ValueError, match=r"'0\.weight' is a lazy parameter"):
        original_model(lazy)
    with pytest.raises(TypeError, match=r"give a torch\.nn\.Module"):
        original_model(torch.relu)


def test_a_model_is_itself():
    model = network()
    assert original_model(model) is model


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*is deprecated:FutureWarning")
def test_the_older_spectral_norm_is_refused_by_name():
    model = nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(3, 4, 3)))
    with pytest.raises(ValueError, match=r"'0' has .*parametrizations\.spectral_norm"):
        original_model(model)
