import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from edgeailite.quantization.arithmetic.presets import PRESETS
from edgeailite.quantization.modules.pact2 import NoQAct
from edgeailite.quantization.prepare.policy import Policy
from edgeailite.quantization.prepare.prepare import prepare
from edgeailite.quantization.report.reasons import float_operations
from edgeailite.quantization.targets.registry import get_target
from tests.quantization.zoo import Residual, WeightStandardization

SYMMETRIC = PRESETS["WT8SYMP2_AT8SYMP2"]
CONFIGURATION = "the preset or configuration leaves it in float"


def whole(x):
    return x.sin() if x.sum() > 0 else x


fx.wrap("whole")


class Body(nn.Module):
    """A convolution, then a function of its output and of a second part."""

    def __init__(self, body, part=None):
        super().__init__()
        self.conv, self.part, self.body = nn.Conv2d(3, 4, 1), part, body
        self.gain = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x):
        return self.body(self, self.conv(x))


class Inner(nn.Conv2d):
    pass


def floats(model, policy=None, **options):
    prepared = prepare(model, policy or Policy(SYMMETRIC), get_target("onnx_runtime"), **options)
    return float_operations(prepared)


def test_a_network_of_integers_has_none():
    assert floats(Residual()) == {}


@pytest.mark.parametrize(
    ("body", "name", "operation", "reason"),
    [
        (lambda m, y: F.normalize(y, p=1.0), "normalize", "normalize", "p=1.0 has no integer form"),
        (lambda m, y: y.cumsum(1), "cumsum", "cumsum", "no integer form"),
        (lambda m, y: torch.linalg.norm(y, 2, (2, 3)), "linalg_norm", "linalg_norm",
         "p=2 of a matrix, its largest singular value, has no integer form"),
        (lambda m, y: y // m.gain, "floordiv", "floordiv", "the target has no integer form of it"),
        (lambda m, y: y + y.size(0), "add", "add", "depends on the batch size"),
        (lambda m, y: m.conv(whole(y)[:, :3]), "whole", "whole", "tracing does not enter"),
        (
            lambda m, y: F.conv2d(y[:, :3], y[:2, :3, :1, :1]),
            "conv2d", "conv2d", "its weight depends on the input",
        ),
        (
            lambda m, y: m.conv(torch.clamp(y, min=m.gain)[:, :3]),
            "clamp", "clamp", "its bounds are not two numbers",
        ),
    ],
)  # fmt: skip
def test_functions(body, name, operation, reason):
    found = floats(Body(body))
    assert found[name].operation == operation
    assert reason in found[name].reason


@pytest.mark.parametrize(
    ("part", "operation", "reason"),
    [
        (nn.RReLU(), "RReLU", "no integer form"),
        (nn.LocalResponseNorm(2), "LocalResponseNorm", "no integer form"),
        (
            nn.InstanceNorm2d(4, track_running_stats=True),
            "InstanceNorm2d",
            "running_mean=(a tensor) has no integer form",
        ),
    ],
)
def test_modules(part, operation, reason):
    found = floats(Body(lambda m, y: m.part(F.max_pool2d(y, 1)), part))["part"]
    assert found.operation == operation
    assert reason in found.reason


def test_a_batch_norm_that_nothing_folds_computes_integers_between_grids_alone():
    norm = nn.BatchNorm2d(4)
    assert floats(Body(lambda m, y: m.part(F.max_pool2d(y, 1)), norm)) == {}
    found = floats(Body(lambda m, y: m.part(y), nn.Sequential(NoQAct(), norm)))["part.1"]
    assert found.reason.startswith("no layer in front of it folds it")


@pytest.mark.parametrize("part", [nn.Sequential(nn.Conv2d(4, 4, 1)), Residual()])
def test_a_leaf_module_of_the_user(part):
    model = Body(lambda m, y: m.part(y), part)
    found = floats(model, leaf_modules=["part"])["part"]
    assert found.operation == type(part).__name__
    assert found.reason.startswith("a leaf module (leaf_modules")


def test_a_subclass_of_a_layer_that_is_a_leaf():
    model = Body(lambda m, y: m.part(y), Inner(4, 4, 1))
    found = floats(model, leaf_modules=[Inner])["part"]
    assert found.operation == "Inner"
    assert found.reason.startswith("a subclass of Conv2d may compute anything")


def test_attention_in_one_piece_and_in_pieces():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Linear(8, 8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            y = self.stem(x)
            return self.attention(y, y, y)[0]

    assert floats(Net()) == {}
    softmax = floats(Net(), Policy(None))["attention.softmax"]
    assert softmax.operation == "softmax"
    assert softmax.reason.endswith("(a piece of attention)")
    closed = floats(Net(), leaf_modules=[nn.MultiheadAttention])["attention"]
    assert closed.operation == "MultiheadAttention"
    assert closed.reason.startswith("a leaf module: leaf_modules names it")


def test_what_the_configuration_leaves_in_float():
    model = Residual()
    found = floats(model, Policy(SYMMETRIC, by_path={"conv2": None, "fc": None}))
    assert found["conv2"].reason == CONFIGURATION
    assert found["fc"].operation == "Linear"
    everything = floats(Residual(), Policy(None))
    assert {e.reason for e in everything.values()} >= {CONFIGURATION}
    assert "conv1" in everything


def test_a_float_input_makes_the_first_layer_float():
    found = floats(nn.Sequential(nn.Conv2d(3, 4, 1)), Policy(SYMMETRIC, quantize_in=False))
    assert found["0"].operation == "Conv2d"
    assert found["0"].reason.startswith("its weight is quantized, but its input lies on no grid")


def test_no_quantizer_asked_for():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), NoQAct(), nn.Conv2d(4, 4, 1))
    assert floats(model)["1"].reason == "NoQAct asks for float"


def test_addition_in_front_of_no_quantizer():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.stop = nn.Conv2d(3, 3, 1), NoQAct()

        def forward(self, x):
            return self.stop(self.conv(x) + x)

    assert floats(Net())["add"].reason == "NoQAct behind it asks for float"


def test_a_weight_that_is_computed_from_parameters_is_quantized():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), WeightStandardization(4, 2, 3))
    assert floats(model) == {}


def test_recurrent_layers_are_named_and_masks_are_not():
    def body(model, y):
        y, _ = model.part((y * (y > 0)).flatten(2).transpose(1, 2))
        return y

    found = floats(Body(body, nn.LSTM(4, 3, batch_first=True)))
    assert found["part"].reason == "a recurrent layer: called whole, with float weights"
    assert set(found) == {"mul", "part"}
