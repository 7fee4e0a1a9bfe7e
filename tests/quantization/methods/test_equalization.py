import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeailite.quantization import PTCFxModule, QConfig, QuantSpec
from edgeailite.quantization.methods.activation_ranges import search_activation_ranges
from edgeailite.quantization.methods.bias_correction import correct_biases
from edgeailite.quantization.methods.equalization import FILLED, equalize
from edgeailite.quantization.modules.layer_calls import float_arithmetic, layer_calls
from edgeailite.quantization.modules.pact2 import quantizers
from edgeailite.quantization.verify.compare import verify

PER_TENSOR = "WT8SYMP2_AT8SYMP2"


def _unit(i, o, act, k=3, **options):
    conv = nn.Conv2d(i, o, k, padding=k // 2, bias=False, **options)
    return [conv, nn.BatchNorm2d(o), *([] if act is None else [act()])]


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(*_unit(3, 8, nn.ReLU))
        self.one = nn.Sequential(*_unit(8, 12, nn.ReLU), *_unit(12, 8, None))
        self.two = nn.Sequential(*_unit(8, 12, nn.ReLU6), *_unit(12, 8, None))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        x = F.relu(x + self.one(x))
        x = x + self.two(x)
        return self.head(x.mean((2, 3)))


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(*_unit(3, 4, nn.ReLU))
        self.b = nn.Sequential(*_unit(3, 6, nn.ReLU6))
        self.mix = nn.Sequential(*_unit(10, 8, nn.ReLU), nn.MaxPool2d(2))
        self.head = nn.Linear(8 * 16, 5)

    def forward(self, x):
        x = self.mix(torch.cat([self.a(x), self.b(x)], 1))
        return self.head(torch.flatten(F.dropout(x, 0.5, self.training), 1))


class Shared(nn.Module):
    """Nothing can be scaled: a layer that is used twice, and a function that is not linear."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.twice(F.relu(self.first(x))))
        x = F.relu(self.twice(x))
        return self.last(x * torch.sigmoid(x))


class Rows(nn.Module):
    """Means over channels, and padded channels: as many rows as channels, but other ones."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
        self.rows, self.last = nn.Conv1d(8, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        rows = self.rows(F.relu(self.first(x)).mean(1))
        return rows + self.last(F.pad(F.relu(self.second(x)), (0, 0, 0, 0, 1, -1))).mean(2)


class Tokens(nn.Module):
    """Channels come last: axis 1 holds tokens, once as many as channels, once one more."""

    def __init__(self):
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 16, 2, 2), nn.Parameter(torch.ones(1, 1, 16))
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.last = nn.Linear(16, 4)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = self.second(F.relu(self.first(x)))
        return self.last(torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1))


class Twice(nn.Module):
    """A value beside itself."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Sequential(*_unit(3, 8, nn.ReLU)), nn.Conv2d(16, 4, 1)

    def forward(self, x):
        x = self.first(x)
        return self.last(torch.cat([x, x], 1))


NETWORKS = {
    "chain": lambda: nn.Sequential(
        *_unit(3, 8, nn.ReLU6), *_unit(8, 8, nn.ReLU, groups=8), *_unit(8, 16, nn.ReLU6, 1),
        *_unit(16, 16, nn.ReLU, groups=16), *_unit(16, 8, nn.ReLU6, 1), nn.Conv2d(8, 4, 1),
    ),
    "residual": Residual,
    "concat": Branches,
    "shared": Shared,
    "rows": Rows,
    "tokens": Tokens,
    "twice": Twice,
    "transposed": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.ZeroPad2d(1),
        nn.ConvTranspose2d(8, 6, 4, 2, 1, groups=2), nn.ReLU(),
        nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(6, 4, 1),
    ),
    "no gain": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False), nn.ReLU(), nn.Conv2d(8, 4, 1)
    ),
}  # fmt: skip


# Where channels are made and where they are read, of the networks above: batch norms and layers.
PLACES = {
    "chain": [((1,), (3,)), ((4,), (6,)), ((7,), (9,)), ((10,), (12,)), ((13,), (15,))],
    "residual": [
        (("stem.1", "one.4", "two.4"), ("one.0", "two.0", "head")),
        (("one.1",), ("one.3",)),
        (("two.1",), ("two.3",)),
    ],
    "concat": [(("a.1", "b.1"), ("mix.0",))],
}


def _uneven(name):
    """A network whose channels differ by a factor of up to a thousand, to no effect in float."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.3, 0.3)
                module.running_var.uniform_(0.5, 2.0)
                if module.affine:
                    module.weight.uniform_(0.5, 1.5)
                    module.bias.uniform_(-0.5, 0.5)
        for made, read in PLACES.get(name, []):
            norms = [network.get_submodule(str(path)) for path in made]
            counts = [norm.num_features for norm in norms]
            joined = name == "concat"
            factor = 10 ** torch.empty(sum(counts) if joined else counts[0]).uniform_(-2.5, 0.5)
            parts = factor.split(counts) if joined else [factor] * len(norms)
            for norm, part in zip(norms, parts, strict=True):
                norm.weight *= part
                norm.bias *= part
            for path in read:
                layer = network.get_submodule(str(path))
                depthwise = getattr(layer, "groups", 1) > 1
                view = (-1, 1, 1, 1) if depthwise else (1, -1, *[1] * (layer.weight.dim() - 2))
                layer.weight /= factor.reshape(view)
    return network.eval()


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 3, 8, 8, generator=generator),) for _ in range(2)]


def _relative_error(model, batches, reference):
    with torch.no_grad():
        pairs = zip(batches, reference, strict=True)
        difference = sum(float((model(*b) - r).square().sum()) for b, r in pairs)
    return difference / sum(float((r - r.mean(0)).square().sum()) for r in reference)


@pytest.mark.parametrize("name", NETWORKS)
def test_float_network_computes_the_same(name, batches):
    network = _uneven(name)
    with torch.no_grad():
        reference = [network(*b) for b in batches]
    model = PTCFxModule(network, qconfig_type=PER_TENSOR).eval().module
    changed = equalize(model, batches)
    with float_arithmetic(model):
        for batch, expected in zip(batches, reference, strict=True):
            with torch.no_grad():
                actual = model(*batch)
            torch.testing.assert_close(
                actual, expected, rtol=1e-5, atol=1e-5 * expected.abs().max()
            )
    assert bool(changed) == (name not in ("no gain", "rows", "shared", "tokens"))


@pytest.mark.parametrize("name", ["chain", "residual", "concat"])
def test_per_tensor_error_falls(name, batches):
    network = _uneven(name)
    with torch.no_grad():
        reference = [network(*b) for b in batches]
    errors = []
    for scaled in (False, True):
        model = PTCFxModule(_uneven(name), qconfig_type=PER_TENSOR).eval().module
        if scaled:
            equalize(model, batches)
        search_activation_ranges(model, batches)
        correct_biases(model, batches)
        errors.append(_relative_error(model, batches, reference))
    assert errors[1] < errors[0] / 3


def test_every_channel_fills_its_range(batches):
    model = PTCFxModule(_uneven("chain"), qconfig_type=PER_TENSOR).eval().module
    equalize(model, batches)
    seen = []
    quantizer = quantizers(model)["2"]
    quantizer.register_forward_hook(lambda _m, _a, y: seen.append(y.transpose(0, 1).flatten(1)))
    with float_arithmetic(model), torch.no_grad():
        for batch in batches:
            model(*batch)
    largest = torch.cat(seen, 1).amax(1)
    assert largest.max() <= FILLED + 1e-6
    assert (largest > 0.9).float().mean() > 0.5


def test_relu6_clips_each_channel_where_it_did(batches):
    network = _uneven("chain")
    with torch.no_grad():
        network[1].weight *= 30  # many values reach 6
        reference = [network(*b) for b in batches]
    model = PTCFxModule(network, qconfig_type=PER_TENSOR).eval().module
    equalize(model, batches)
    assert quantizers(model)["2"].clip_high.shape == (8,)
    with float_arithmetic(model):
        assert _relative_error(model, batches, reference) < 1e-9


@pytest.mark.parametrize("name", ["chain", "residual", "concat"])
@pytest.mark.parametrize("preset", [PER_TENSOR, "WC8SYMP2_AT8SYMP2"])
def test_equalized_network_is_exact_as_onnx(name, preset, batches, tmp_path):
    wrapper = PTCFxModule(_uneven(name), qconfig_type=preset).eval()
    equalize(wrapper.module, batches)
    search_activation_ranges(wrapper.module, batches)
    wrapper.export(batches[0][0], tmp_path / "model.onnx")
    comparison = verify(wrapper, [b[0] for b in batches], tmp_path / "model.onnx")
    assert sum(comparison.mismatches.values()) == 0


def test_equalizing_twice_changes_next_to_nothing(batches):
    model = PTCFxModule(_uneven("chain"), qconfig_type=PER_TENSOR).eval().module
    equalize(model, batches)
    once = {call.path: call.weight.clone() for call in layer_calls(model)}
    equalize(model, batches)
    for call in layer_calls(model):
        ratio = call.weight.abs().amax() / once[call.path].abs().amax()
        assert 0.5 < ratio < 2.0


def test_checkpoint_of_an_equalized_network_loads(batches):
    model = PTCFxModule(_uneven("chain"), qconfig_type=PER_TENSOR).eval().module
    equalize(model, batches)
    search_activation_ranges(model, batches)
    state = model.state_dict()
    assert "2.clip_high" in state
    twin = PTCFxModule(_uneven("chain"), qconfig_type=PER_TENSOR).eval().module
    twin.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(twin(*batches[0]), model(*batches[0]))
    twin.load_state_dict(_uneven("chain").state_dict())
    assert quantizers(twin)["2"].bounds == (0.0, 6.0)


def test_bound_inside_a_range_that_grew_afterwards(batches):
    wrapper = PTCFxModule(_uneven("chain"), qconfig_type=PER_TENSOR).eval()
    equalize(wrapper.module, batches)
    search_activation_ranges(wrapper.module, batches)
    quantizer = quantizers(wrapper.module)["2"]
    quantizer.clip_high[0] = 0.5
    x = batches[0][0]
    with torch.no_grad():
        assert wrapper.module.get_submodule("2")(x.repeat(1, 3, 1, 1)[:, :8]).amax() <= 1.0
    with pytest.raises(ValueError, match="bounds of the channels at '2', from equalization"):
        wrapper.convert()


def test_bits_of_activations_are_not_wasted_on_one_channel():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(2, 1, 1)).eval()
    with torch.no_grad():
        network[0].weight[:] = torch.tensor([100.0, 0.1]).reshape(2, 1, 1, 1)
        network[2].weight[:] = torch.tensor([0.01, 10.0]).reshape(1, 2, 1, 1)
    x = torch.rand(4, 1, 8, 8)
    config = QConfig(QuantSpec(bit_width=16, signed=True), QuantSpec(bit_width=4))
    errors = []
    for scaled in (False, True):
        model = PTCFxModule(copy.deepcopy(network), qconfig_type=config).eval().module
        if scaled:
            equalize(model, [(x,)])
        search_activation_ranges(model, [(x,)])
        with torch.no_grad(), float_arithmetic(model):
            reference = [model(x)]
        errors.append(_relative_error(model, [(x,)], reference))
    assert errors[1] < errors[0]
