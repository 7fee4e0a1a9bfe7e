"""Semantic segmentation models, one family a file."""

from edgeailite.models.segmentation.bifpn import BiFPNDecoder
from edgeailite.models.segmentation.common import SegmentationModel
from edgeailite.models.segmentation.deeplabv3plus import DeepLabV3PlusDecoder
from edgeailite.models.segmentation.encoder import ENCODERS, Encoder
from edgeailite.models.segmentation.fpn import FPNDecoder
from edgeailite.models.segmentation.unet import UNetDecoder

__all__ = [
    "ENCODERS",
    "BiFPNDecoder",
    "DeepLabV3PlusDecoder",
    "Encoder",
    "FPNDecoder",
    "SegmentationModel",
    "UNetDecoder",
]
