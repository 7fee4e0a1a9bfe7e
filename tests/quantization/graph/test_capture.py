"""Training flags and constants; the rest of capturing is in test_graph.py."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from edgeailite.quantization.graph.capture import capture
from edgeailite.quantization.wrappers import PTCFxModule, QATFxModule


class Drops(nn.Module):
    """Dropout by its function, in a child and in the model itself; a batch norm by its function."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 4, 1), FunctionalDropout())
        self.head = nn.Conv2d(4, 4, 1)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x):
        x = F.batch_norm(self.inner(x), self.mean, self.var, None, None, self.training)
        return F.dropout(self.head(x), 0.5, self.training)


class FunctionalDropout(nn.Module):
    def forward(self, x):
        return F.dropout2d(x, 0.5, training=self.training)


@pytest.mark.parametrize("traced_in_training", [True, False])
def test_functional_dropout_follows_the_mode_it_runs_in(traced_in_training):
    model, x = Drops().train(traced_in_training), torch.randn(4, 3, 8, 8)
    captured = capture(model)
    assert model.training is traced_in_training
    captured.eval()
    torch.testing.assert_close(captured(x), model.eval()(x), rtol=0, atol=0)
    captured.train()
    assert not torch.equal(captured(x), captured(x))
    captured.inner.eval()  # a child alone, as its users switch it
    assert (captured.inner(torch.ones(1, 3, 2, 2)) != 0).all()


def test_functional_batch_norm_learns_in_training_only():
    captured, x = capture(Drops()), torch.randn(4, 3, 8, 8) + 3
    captured.eval()(x)
    assert not captured.mean.any()
    captured.train()(x)
    assert captured.mean.all()


def test_flags_survive_copies_conversion_and_export(tmp_path):
    wrapper = QATFxModule(Drops(), total_epochs=2)
    x = torch.randn(4, 3, 8, 8)
    wrapper.train()
    wrapper(x)
    wrapper.eval()
    expected = wrapper(x)
    for other in (copy.deepcopy(wrapper), pickle.loads(pickle.dumps(wrapper)), wrapper.convert()):
        torch.testing.assert_close(other(x), expected, rtol=0, atol=0.02)
    assert wrapper.export(x, tmp_path / "m.onnx").is_file()


class Flag(nn.Module):
    """``False`` is what this argument says, in every mode."""

    def forward(self, x):
        return F.dropout(x * 2, 0.5, training=False)


def test_a_constant_flag_stays_constant():
    captured, x = capture(Flag()).train(), torch.randn(8)
    assert torch.equal(captured(x), 2 * x)


class TwoPaths(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.auxiliary = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.conv(x)
        return (x, self.auxiliary(x)) if self.training else x


def test_each_mode_has_its_own_result():
    model, x = TwoPaths(), torch.randn(1, 3, 4, 4)
    captured = capture(copy.deepcopy(model))
    for training in (True, False):
        ours, theirs = captured.train(training)(x), model.train(training)(x)
        assert type(ours) is type(theirs)
        assert all(map(torch.equal, ours, theirs))
    calls = []
    captured.auxiliary.register_forward_hook(lambda *_: calls.append(1))
    captured.eval()(x)
    assert calls == []  # evaluation makes no call that only training needs


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.conv(x) + torch.arange(4.0).reshape(1, 4, 1, 1)


def test_constants_made_in_forward_belong_to_the_graph_not_to_the_model():
    model = Constant()
    before, x = set(vars(model)), torch.randn(2, 3, 4, 4)
    captured = capture(model)
    assert set(vars(model)) == before
    assert set(captured.state_dict()) == set(model.state_dict())
    for other in (captured, copy.deepcopy(captured), pickle.loads(pickle.dumps(captured))):
        torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["efficientnet_b0", "convnext_tiny"])
def test_stochastic_depth_is_off_in_evaluation_however_the_model_was_wrapped(name):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, num_classes=10).train()
    reference, x = copy.deepcopy(model).eval(), torch.randn(2, 3, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrapper = PTCFxModule(model, qconfig_type="DISABLED").eval()
    torch.testing.assert_close(wrapper(x), reference(x), rtol=0, atol=0)


def test_timms_batch_norm_with_activation_is_folded():
    timm = pytest.importorskip("timm")
    model = timm.create_model("mobilenetv2_050", num_classes=10).eval()
    reference, x = copy.deepcopy(model), torch.randn(2, 3, 32, 32)
    keys = list(model.state_dict())
    captured = capture(model).eval()
    torch.testing.assert_close(captured(x), reference(x), rtol=1e-5, atol=1e-5)
    assert list(captured.state_dict()) == keys
    assert not [n for n in captured.graph.nodes if n.target is F.batch_norm]
