"""Norms that a model writes out become one call; their integers hold more than those between."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeailite.quantization import PTCFxModule, QATFxModule
from edgeailite.quantization.arithmetic.sqnr import sqnr
from edgeailite.quantization.graph.norm_along import NormAlong
from edgeailite.quantization.integer.normalizations import IntegerNormalization
from edgeailite.quantization.prepare import prepare
from edgeailite.quantization.report import build_report
from edgeailite.quantization.verify import verify

PRESETS = ["WC8_AT8", "WT8SYMP2_AT8SYMP2"]
EPS = 1e-6


def channels_first(x, w, b):
    """As ConvNeXt's own, https://arxiv.org/abs/2201.03545."""
    u = x.mean(1, keepdim=True)
    s = (x - u).pow(2).mean(1, keepdim=True)
    x = (x - u) / torch.sqrt(s + EPS)
    return w[:, None, None] * x + b[:, None, None]


def centered_once(x, w, b):
    d = x - torch.mean(x, dim=[1], keepdim=True)
    return d * (d * d).mean([1], True).add(EPS).rsqrt() * w.view(-1, 1, 1)


def by_variance(x, w, b):
    d = x - x.mean(1, keepdim=True)
    return d / torch.sqrt(x.var(1, keepdim=True, unbiased=False) + EPS) * w[:, None, None]


def rms(x, w, b):
    return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + EPS)


def rms_of_llama(x, w, b):
    y = x.permute(0, 2, 3, 1).to(torch.float32)
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + EPS)
    return (w * y.to(x.dtype)).permute(0, 3, 1, 2).type_as(x)


def rms_divided(x, w, b):
    return torch.div(x, torch.sqrt(EPS + torch.mean(torch.square(x), (1, 2), keepdim=True)))


def rms_power(x, w, b):
    return w[:, None, None] * (x * ((x**2).mean(1, True) + EPS) ** -0.5) + b[:, None, None]


def rms_reciprocal(x, w, b):
    return (1 / (x * x).mean(dim=1, keepdim=True).sqrt()) * x


def unit(x, w, b):
    return x / x.norm(dim=1, keepdim=True)


def unit_clamped(x, w, b):
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=0.01)


NORMS = {
    function.__name__: function
    for function in (
        channels_first,
        centered_once,
        by_variance,
        rms,
        rms_of_llama,
        rms_divided,
        rms_power,
    )
} | {function.__name__: function for function in (rms_reciprocal, unit, unit_clamped)}


class Norm(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.name = name
        self.weight, self.bias = nn.Parameter(torch.rand(8) + 0.5), nn.Parameter(torch.randn(8))
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.head(NORMS[self.name](x, self.weight, self.bias))


class Norms(nn.Module):
    """Channels of very different sizes, as activations of networks have them."""

    def __init__(self, names, has_condition=False):
        super().__init__()
        self.stem, self.has_condition = nn.Conv2d(3, 8, 1), has_condition
        self.norms = nn.ModuleList(map(Norm, names))
        with torch.no_grad():
            self.stem.weight[0] *= 8

    def forward(self, x):
        x = self.stem(x)
        if self.has_condition and x.shape[2] < 2:  # torch.fx cannot follow it
            return [x]
        return [norm(x) for norm in self.norms]


@pytest.mark.parametrize(("preset", "has_condition"), [(PRESETS[0], True), (PRESETS[1], False)])
def test_written_norms_are_integers_in_evaluation_and_in_files(preset, has_condition, tmp_path):
    torch.manual_seed(0)
    model, x = Norms(list(NORMS), has_condition), torch.randn(4, 3, 5, 4)
    wrapper = QATFxModule(
        model, qconfig_type=preset, total_epochs=2, example_inputs=x, verbose=False
    ).train()
    sum(y.square().mean() for y in wrapper(x)).backward()
    used = [p for p in model.parameters() if p.grad is not None]
    assert all(bool(p.grad.isfinite().all()) and bool(p.grad.any()) for p in used)
    wrapper.calibrate([x])
    assert not build_report(wrapper, [x]).floats
    norms = [m for m in wrapper.convert().modules() if isinstance(m, IntegerNormalization)]
    assert len(norms) == len(NORMS)
    for form in ("QDQ_MODEL", "INT_MODEL"):
        is_qdq = form == "QDQ_MODEL"  # an open batch size takes the exporter half as long again
        path = wrapper.export(x, tmp_path / f"{form}.onnx", format=form, dynamic_batch=is_qdq)
        found = verify(wrapper, [x, torch.randn_like(x)], path)
        pairs = {
            p: n for p, n in found.mismatches.items() if "off" not in p or preset != PRESETS[0]
        }
        assert len(pairs) == 2 + (preset != PRESETS[0])
        assert not any(pairs.values()), str(found)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("example", [True, False])
def test_a_written_norm_is_one_call(name, example):
    x = torch.randn(2, 3, 5, 4)
    given = x if example else None
    wrapper = PTCFxModule(Norms([name]), example_inputs=given, verbose=False)
    norms = [m for m in wrapper.modules() if isinstance(m, NormAlong)]
    calls = wrapper.module.graph.find_nodes(op="call_function", target=F.normalize)
    assert len(norms) + len(calls) == 1
    assert all(norm.eps == (0.0 if name == "rms_reciprocal" else EPS) for norm in norms)


def decibels(name, monkeypatch=None):
    torch.manual_seed(0)
    model, x = Norms([name]), torch.randn(16, 3, 9, 7)
    original = copy.deepcopy(model)
    if monkeypatch is not None:
        monkeypatch.setattr(prepare, "recognize_norms", lambda graph: None)
    wrapper = PTCFxModule(model, example_inputs=x, verbose=False).calibrate([x])
    with torch.no_grad():
        return float(sqnr(original(x)[0], wrapper(x)[0]))


@pytest.mark.parametrize("name", ["channels_first", "rms", "rms_of_llama"])
def test_a_recognized_norm_is_more_precise_than_its_pieces(name, monkeypatch):
    assert decibels(name) > 26  # 31.6, 29.0, 27.4
    assert decibels(name, monkeypatch) < 0  # the grid of x ** 2 rounds the squares to zero
