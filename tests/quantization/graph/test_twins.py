import copy
import pickle

import pytest
import torch
from torch import nn

from edgeailite.quantization import PTCFxModule, QuantTrainModule
from edgeailite.quantization.graph.twins import make_twin, original_type, replace_modules
from edgeailite.quantization.modules.layer import QUANT_LAYERS, QuantLayer
from edgeailite.quantization.modules.normalization import (
    STANDALONE_BATCH_NORMS,
    StandaloneBatchNorm,
    StandaloneLayerNorm,
)
from edgeailite.quantization.modules.pact2 import PACT2
from edgeailite.quantization.wrappers.quant_module import QuantModule


class DoublingConv(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class SharedLayer(nn.Module):
    """One convolution at three paths, called at two of them."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1)
        self.again = self.first
        self.block = nn.Sequential(nn.ReLU(), self.first)

    def forward(self, x):
        return self.block(self.again(x))


def test_a_twin_has_the_state_of_its_original():
    conv = nn.Conv2d(2, 2, 1)
    twin = make_twin(conv, DoublingConv)
    x = torch.randn(1, 2, 4, 4)
    assert type(conv) is nn.Conv2d
    assert twin.weight is conv.weight
    assert torch.equal(twin(x), 2 * conv(x))
    conv.weight = nn.Parameter(torch.zeros_like(conv.weight))
    conv.eval()
    assert twin.weight is conv.weight
    assert not twin.training


def test_hooks_go_along_and_handles_still_remove_them():
    conv, seen = nn.Conv2d(2, 2, 1), []
    handle = conv.register_forward_hook(lambda module, args, output: seen.append(module))
    twin = make_twin(conv, DoublingConv)
    twin(torch.zeros(1, 2, 4, 4))
    assert seen == [twin]
    handle.remove()
    twin(torch.zeros(1, 2, 4, 4))
    assert seen == [twin]


def test_a_hook_of_loading_gets_the_twin():
    conv, seen = nn.Conv2d(2, 2, 1), []
    conv.register_load_state_dict_pre_hook(lambda module, *args: seen.append(module))
    twin = make_twin(conv, DoublingConv)
    state = conv.state_dict()
    del conv
    twin.load_state_dict(state)
    assert seen == [twin]


def test_a_twin_stands_at_every_path():
    model = SharedLayer()
    twin = make_twin(model.first, DoublingConv)
    replace_modules(model, {model.first: twin})
    assert model.first is twin
    assert model.again is twin
    assert model.block[1] is twin
    assert list(model._modules) == ["first", "again", "block"]


def test_a_shared_layer_has_one_quantizing_twin():
    model = SharedLayer()
    original = model.first
    wrapper = QuantTrainModule(model, dummy_input=torch.randn(1, 3, 4, 4), total_epochs=2)
    twin = wrapper.module.first
    assert isinstance(twin, QuantLayer)
    assert wrapper.module.again is twin
    assert wrapper.module.block[1] is twin
    assert type(original) is nn.Conv2d
    assert original.weight is twin.weight


def test_an_optimizer_from_before_trains_the_wrapper():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    wrapper = QuantTrainModule(model, dummy_input=torch.randn(1, 3, 4, 4), total_epochs=2)
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} <= {
        id(p) for p in wrapper.parameters()
    }
    wrapper.train()
    wrapper(torch.randn(2, 3, 4, 4)).square().sum().backward()
    optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert moved[0]
    assert moved[-2]


@pytest.mark.parametrize("nested", [False, True])
def test_the_users_model_holds_the_twins(nested):
    conv = nn.Conv2d(3, 4, 1)
    model = nn.Sequential(nn.Sequential(conv), nn.ReLU()) if nested else nn.Sequential(conv)
    QuantTrainModule(model, dummy_input=torch.randn(1, 3, 4, 4), total_epochs=2)
    assert any(isinstance(m, QuantLayer) for m in model.modules())
    with pytest.raises(ValueError, match=r"is quantized already: .* \.module"):
        QuantTrainModule(model, dummy_input=torch.randn(1, 3, 4, 4), total_epochs=2)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_have_twins_of_their_own(duplicate):
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.ReLU())
    wrapper: QuantModule = PTCFxModule(model, qconfig_type="WC8SYMP2_AT8SYMP2")
    x = torch.randn(4, 3, 8, 8)
    wrapper.calibrate([x])
    copied = duplicate(wrapper)
    for path in ("0", "1"):
        ours, theirs = wrapper.module.get_submodule(path), copied.module.get_submodule(path)
        assert type(ours) is type(theirs)
        assert ours.__dict__ is not theirs.__dict__
    assert torch.equal(copied(x), wrapper(x))
    with torch.no_grad():
        copied.module.get_submodule("1").weight.zero_()
    assert bool(wrapper.module.get_submodule("1").weight.any())


def test_twin_types_name_what_they_stand_for():
    for base, twin in QUANT_LAYERS.items():
        assert twin.__name__ == f"Quant{base.__name__}"
        assert issubclass(twin, base)
    norm = StandaloneBatchNorm.from_float(nn.BatchNorm2d(3))
    assert isinstance(norm, nn.BatchNorm2d)
    assert type(norm).__name__ == "StandaloneBatchNorm2d"


def test_the_type_of_a_twin_in_the_users_model():
    class Own(nn.LayerNorm):
        pass

    assert original_type(StandaloneLayerNorm(4)) is nn.LayerNorm
    assert original_type(STANDALONE_BATCH_NORMS[nn.BatchNorm1d](4)) is nn.BatchNorm1d
    assert [original_type(m) for m in (Own(4), nn.Linear(2, 2))] == [Own, nn.Linear]
    assert original_type(PACT2()) is PACT2
