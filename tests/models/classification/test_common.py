import pytest
import torch
from torch import nn

from edgeailite.models import create_model, list_models
from edgeailite.models.classification.common import check_strides, init_weights
from edgeailite.models.classification.mobilenetv3 import SqueezeExcitation
from edgeailite.xnn.layers import AddBlock, MultBlock
from edgeailite.xnn.utils import is_bn, is_conv, model_complexity

# GMAC and Mparam at 3x224x224, as published for these models.
PUBLISHED = {
    "mobilenetv1_x1": (0.569, 4.23),
    "mobilenetv2_tv_x1": (0.301, 3.51),
    "mobilenetv2_x1": (0.301, 3.51),
    "resnet18_x1": (1.81, 11.7),
    "resnet50_x1": (4.09, 25.6),
    "resnet50_xp5": (1.05, 6.92),
    "mobilenetv2_tv_x2_t2": (0.471, 6.56),
    "mobilenetv3_small_x1": (0.057, 2.54),
    "mobilenetv3_large_x1": (0.217, 5.48),
    "mobilenetv3_lite_small_x1": (0.056, 2.08),
    "mobilenetv3_lite_large_x1": (0.215, 3.97),
    "vgg16_x1": (15.5, 138),
    "shufflenetv2_x1p0": (0.145, 2.28),
    "shufflenetv2_x1p5": (0.296, 3.50),
    **dict.fromkeys(("regnetx400mf_x1", "regnetx400mf_x1_bgr"), (0.398, 5.16)),
    **dict.fromkeys(("regnetx800mf_x1", "regnetx800mf_x1_bgr"), (0.800, 7.26)),
    **dict.fromkeys(("regnetx1p6gf_x1", "regnetx1p6gf_x1_bgr"), (1.60, 9.19)),
    **dict.fromkeys(("regnetx3p2gf_x1", "regnetx3p2gf_x1_bgr"), (3.18, 15.3)),
}
# One of each structure, and the largest only where nothing else has it.
STRUCTURES = [n for n in PUBLISHED if not n.startswith(("regnetx8", "regnetx1", "regnetx3"))]
STRUCTURES.remove("regnetx400mf_x1_bgr")


def narrow(name, **options):
    """As small as its builder makes it."""
    has_one_width = name.startswith(("regnetx", "shufflenetv2")) or name.endswith("_t2")
    width = {} if has_one_width else {"width_mult": 0.125}
    return create_model(name, num_classes=3, **width, **options)


@pytest.mark.parametrize("name", PUBLISHED)
def test_complexity_is_as_published(name):
    report = model_complexity(create_model(name), (1, 3, 224, 224))
    assert (report.gmacs, report.mparams) == pytest.approx(PUBLISHED[name], rel=0.01)


def test_every_listed_model_has_a_published_complexity():
    classifiers = {name for name in list_models() if not name.endswith("_edgeailite")}
    assert classifiers == set(PUBLISHED)


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize(
    ("strides", "factor"), [(None, 32), ((1, 1, 1, 2, 2), 4), ((2, 1, 2, 1, 2), 8), ((1,) * 5, 1)]
)
def test_strides_set_the_size_of_the_last_feature(name, strides, factor):
    model = narrow(name, strides=strides).eval()
    shapes = []
    pool = [m for m in model.modules() if isinstance(m, nn.AdaptiveAvgPool2d)][-1]
    pool.register_forward_hook(lambda _, inputs, __: shapes.append(inputs[0].shape))
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    assert shapes[0][-2:] == (32 // factor, 32 // factor)


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_module_is_called_once_and_each_convolution_is_normalized(name):
    model = narrow(name)
    calls = []
    for path, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, *_, path=path: calls.append((path, module)))
    model.eval()(torch.randn(1, 3, 32, 32))
    paths = [path for path, _ in calls]
    assert sorted(paths) == sorted(set(paths))
    kinds = [module for _, module in calls]
    gates = sum(isinstance(m, SqueezeExcitation) for m in model.modules())
    assert sum(map(is_conv, kinds)) == sum(map(is_bn, kinds)) + 2 * gates
    assert gates == 0 or name in ("mobilenetv3_small_x1", "mobilenetv3_large_x1")


@pytest.mark.parametrize("name", [n for n in STRUCTURES if "shufflenet" not in n])
def test_graph_holds_modules_only(name):
    traced = torch.fx.symbolic_trace(narrow(name))
    additions = [node for node in traced.graph.nodes if node.op == "call_function"]
    blocks = [m for m in narrow(name).modules() if isinstance(m, AddBlock | MultBlock)]
    assert len(additions) == len(blocks)
    assert not any(node.op == "call_method" for node in traced.graph.nodes)


@pytest.mark.parametrize("strides", [(2, 2), (1, 1, 1, 2, 4), (0, 1, 1, 1, 1)])
def test_wrong_strides_raise(strides):
    with pytest.raises(ValueError, match="give one stride, 1 or 2, for each of the five stages"):
        check_strides(strides)


def test_initial_weights_follow_their_formulas():
    model = nn.Sequential(
        nn.Conv2d(64, 128, 3), nn.BatchNorm2d(128), nn.Conv2d(2, 4, 1), nn.Linear(512, 256)
    )
    nn.init.uniform_(model[1].weight)
    linear = model[3].weight.clone()
    init_weights(model)
    assert model[0].weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    assert not model[0].bias.any()
    assert torch.equal(model[1].weight, torch.ones(128))
    assert torch.equal(model[3].weight, linear)
    init_weights(model, linear_std=0.01)
    assert model[3].weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not model[3].bias.any()


def test_batch_norm_without_affine_parameters_is_left_alone():
    norm = nn.BatchNorm2d(4, affine=False)
    norm.running_mean.fill_(3.0)
    init_weights(nn.Sequential(norm))
    assert norm.weight is None
    assert norm.running_mean.tolist() == [3.0] * 4
