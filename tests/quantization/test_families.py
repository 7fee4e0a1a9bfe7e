"""One small member of each of torchvision's families; benchmarks/zoo_sweep.py takes them whole."""

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.maxvit import MaxVit
from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3
from torchvision.models.regnet import BlockParams
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.segmentation.lraspp import LRASPP

from edgeailite.quantization.verify.compare import verify
from edgeailite.quantization.wrappers import PTCFxModule

CLASSES = 10


def _regnet(se_ratio):
    params = BlockParams.from_init_params(4, 24, 24.0, 2.5, 8, se_ratio=se_ratio)
    return models.RegNet(params, num_classes=CLASSES)


def _vgg():
    features = models.vgg.make_layers([8, "M", 16, "M"], batch_norm=True)
    head = nn.Sequential(nn.Linear(16 * 4, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, CLASSES))
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(2), nn.Flatten(), head)


def _mobilenet_v3():
    """Both activation functions, with and without squeeze-and-excite, with and without a skip."""
    settings = [
        InvertedResidualConfig(16, 3, 16, 16, False, "RE", 1, 1, 1.0),
        InvertedResidualConfig(16, 3, 32, 24, True, "RE", 2, 1, 1.0),
        InvertedResidualConfig(24, 5, 48, 40, False, "HS", 2, 1, 1.0),
        InvertedResidualConfig(40, 5, 80, 40, True, "HS", 1, 1, 1.0),
    ]
    return MobileNetV3(settings, 64, num_classes=CLASSES)


def _lraspp():
    backbone = IntermediateLayerGetter(_mobilenet_v3().features, {"2": "low", "5": "high"})
    return LRASPP(backbone, 24, 240, num_classes=4)


def _efficientnet():
    settings = [
        MBConvConfig(1, 3, 1, 16, 16, 1), MBConvConfig(6, 3, 2, 16, 24, 2),
        MBConvConfig(6, 5, 2, 24, 40, 1),
    ]  # fmt: skip
    return models.EfficientNet(settings, 0.2, num_classes=CLASSES)


def _mnasnet():
    """Of each stack the block that changes the shape, and one with a skip."""
    model = models.MNASNet(0.35, CLASSES)
    for name, stack in model.layers.named_children():
        if isinstance(stack, nn.Sequential):
            model.layers.add_module(name, stack[:2])
    return model


def _googlenet():
    """Two of five blocks of the middle part and one of the last left out: they keep the shape."""
    model = models.googlenet(num_classes=CLASSES, aux_logits=False, init_weights=False)
    model.inception4b = model.inception4c = model.inception5a = nn.Identity()
    return model


FAMILIES = {
    "vgg": _vgg,
    "resnet": lambda: models.ResNet(BasicBlock, [1, 1, 1, 1], CLASSES),
    "resnext": lambda: models.ResNet(
        Bottleneck, [1, 1, 1, 1], CLASSES, groups=8, width_per_group=4
    ),
    "densenet": lambda: models.DenseNet(8, (2, 2, 2), 16, num_classes=CLASSES),
    "shufflenet": lambda: models.ShuffleNetV2([2, 2, 2], [8, 16, 32, 64, 64], CLASSES),
    "squeezenet": lambda: models.SqueezeNet("1_1", CLASSES),
    "mnasnet": _mnasnet,
    "mobilenet_v2": lambda: models.MobileNetV2(
        CLASSES, 0.25, [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2]]
    ),
    "mobilenet_v3": _mobilenet_v3,
    "efficientnet": _efficientnet,
    "googlenet": _googlenet,
    "regnet_x": lambda: _regnet(None),
    "regnet_y": lambda: _regnet(0.25),
    "convnext": lambda: models.ConvNeXt(
        [CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)], num_classes=CLASSES
    ),
    "vit": lambda: models.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=CLASSES),
    "swin": lambda: models.SwinTransformer(
        [4, 4], 16, [2, 2], [2, 4], [3, 3], num_classes=CLASSES
    ),
    "swin_v2": lambda: models.SwinTransformer(
        [4, 4], 16, [2, 2], [2, 4], [3, 3], num_classes=CLASSES,
        block=models.swin_transformer.SwinTransformerBlockV2,
        downsample_layer=models.swin_transformer.PatchMergingV2,
    ),
    "maxvit": lambda: MaxVit((56, 56), 16, 7, [16, 32], [1, 1], 8, 0.1, num_classes=CLASSES),
    "lraspp": _lraspp,
}  # fmt: skip
SIZES = {"maxvit": 56, "squeezenet": 64, "googlenet": 64, "lraspp": 64}
# Their layers are those of the zoo, which is written with an open batch size: a fixed one takes the
# exporter two thirds of the time.
FIXED_BATCH = (
    *("vgg", "resnet", "resnext", "densenet", "squeezenet", "mnasnet", "mobilenet_v2"),
    *("googlenet", "regnet_x"),
)
# Its attention runs in float between grids, where a library's last bit may move a value by a step.
IN_FLOAT = "swin_v2"


@pytest.mark.slow
@pytest.mark.parametrize("name", list(FAMILIES))
def test_family_is_equal_in_every_value(name, tmp_path):
    size = SIZES.get(name, 32)
    model = FAMILIES[name]().train()
    for parameter in model.parameters():
        if not parameter.any() and parameter.dim() > 1:  # heads that start at zero
            nn.init.normal_(parameter, std=0.05)
    for _ in range(2):
        model(torch.randn(8, 3, size, size))
    wrapper = PTCFxModule(model, qconfig_type="WT8SYMP2_AT8SYMP2")
    wrapper.calibrate(torch.randn(2, 4, 3, size, size))
    is_open = name not in FIXED_BATCH
    example = torch.randn(2 if is_open else 4, 3, size, size)
    path = wrapper.export(example, tmp_path / "model.onnx", dynamic_batch=is_open)
    found = verify(wrapper, [torch.randn(4, 3, size, size)], path)
    assert found.mismatches["evaluation vs integer graph"] == 0
    if name == IN_FLOAT:
        assert max(found.mismatches.values()) <= 0.02 * found.num_values
    else:
        assert found.exact, str(found)
