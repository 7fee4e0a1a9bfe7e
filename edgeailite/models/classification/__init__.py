"""Classification models, one family a file."""

from edgeailite.models.classification.mobilenetv1 import MobileNetV1
from edgeailite.models.classification.mobilenetv2 import MobileNetV2
from edgeailite.models.classification.resnet import ResNet

__all__ = ["MobileNetV1", "MobileNetV2", "ResNet"]
