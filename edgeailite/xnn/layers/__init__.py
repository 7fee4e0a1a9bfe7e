"""Layers that models are written with, and the activation quantizers that wrapping puts in."""

from edgeailite.quantization.modules.pact2 import (
    PACT2,
    NoQAct,
    PAct2,
    QAct,
    ReLU1,
    freeze_quant_range,
    get_fixed_pact2_type,
    unfreeze_quant_range,
)
from edgeailite.xnn.layers.aspp import LiteASPP
from edgeailite.xnn.layers.conv import ConvDWSepNormAct, ConvNormAct, DeconvNormAct
from edgeailite.xnn.layers.elementwise import AddBlock, CatBlock, MultBlock, SubtractBlock
from edgeailite.xnn.layers.resize import ResizeWith, resize_with

__all__ = [
    "PACT2",
    "AddBlock",
    "CatBlock",
    "ConvDWSepNormAct",
    "ConvNormAct",
    "DeconvNormAct",
    "LiteASPP",
    "MultBlock",
    "NoQAct",
    "PAct2",
    "QAct",
    "ReLU1",
    "ResizeWith",
    "SubtractBlock",
    "freeze_quant_range",
    "get_fixed_pact2_type",
    "resize_with",
    "unfreeze_quant_range",
]
