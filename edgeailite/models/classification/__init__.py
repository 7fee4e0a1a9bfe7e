"""Classification models, one family a file."""

from edgeailite.models.classification.mobilenetv1 import MobileNetV1
from edgeailite.models.classification.mobilenetv2 import MobileNetV2
from edgeailite.models.classification.mobilenetv3 import MobileNetV3
from edgeailite.models.classification.regnet import RegNetX
from edgeailite.models.classification.resnet import ResNet
from edgeailite.models.classification.shufflenetv2 import ShuffleNetV2
from edgeailite.models.classification.vgg import VGG

__all__ = [
    "VGG",
    "MobileNetV1",
    "MobileNetV2",
    "MobileNetV3",
    "RegNetX",
    "ResNet",
    "ShuffleNetV2",
]
