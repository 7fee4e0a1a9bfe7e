import pytest
import torch
from torch import nn

from edgeailite.models import create_model, list_models
from edgeailite.models.classification.common import check_strides, init_weights
from edgeailite.xnn.layers import AddBlock
from edgeailite.xnn.utils import is_bn, is_conv, model_complexity

# GMAC and Mparam at 3x224x224, as published for these models.
PUBLISHED = {
    "mobilenetv1_x1": (0.569, 4.23),
    "mobilenetv2_tv_x1": (0.301, 3.51),
    "mobilenetv2_x1": (0.301, 3.51),
    "resnet18_x1": (1.81, 11.7),
    "resnet50_x1": (4.09, 25.6),
    "resnet50_xp5": (1.05, 6.92),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_complexity_is_as_published(name):
    report = model_complexity(create_model(name), (1, 3, 224, 224))
    assert (report.gmacs, report.mparams) == pytest.approx(PUBLISHED[name], rel=0.01)


def test_every_listed_model_has_a_published_complexity():
    assert set(list_models()) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize(
    ("strides", "factor"), [(None, 32), ((1, 1, 1, 2, 2), 4), ((2, 1, 2, 1, 2), 8), ((1,) * 5, 1)]
)
def test_strides_set_the_size_of_the_last_feature(name, strides, factor):
    model = create_model(name, num_classes=3, strides=strides, width_mult=0.125).eval()
    shapes = []
    model.avgpool.register_forward_hook(lambda _, inputs, __: shapes.append(inputs[0].shape))
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    assert shapes[0][-2:] == (32 // factor, 32 // factor)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_module_is_called_once_and_each_convolution_is_normalized(name):
    model = create_model(name, num_classes=3, width_mult=0.125)
    calls = []
    for path, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, *_, path=path: calls.append((path, module)))
    model.eval()(torch.randn(1, 3, 32, 32))
    paths = [path for path, _ in calls]
    assert sorted(paths) == sorted(set(paths))
    kinds = [module for _, module in calls]
    assert sum(map(is_conv, kinds)) == sum(map(is_bn, kinds))


@pytest.mark.parametrize("name", PUBLISHED)
def test_graph_holds_modules_only(name):
    traced = torch.fx.symbolic_trace(create_model(name, num_classes=3))
    additions = [node for node in traced.graph.nodes if node.op == "call_function"]
    blocks = [m for m in create_model(name).modules() if isinstance(m, AddBlock)]
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
    init_weights(nn.Sequential(nn.BatchNorm2d(4, affine=False)))
