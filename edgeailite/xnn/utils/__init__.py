"""Utilities for models: loading weights, batch norm, predicates, complexity."""

from edgeailite.files.checkpoint import read_state_dict
from edgeailite.files.download import download_once
from edgeailite.files.weights import LoadReport, load_weights
from edgeailite.xnn.utils.complexity import Complexity, model_complexity
from edgeailite.xnn.utils.modules import (
    freeze_bn,
    is_bn,
    is_conv,
    is_deconv,
    is_dwconv,
    unfreeze_bn,
)
from edgeailite.xnn.utils.numbers import make_divisible

__all__ = [
    "Complexity",
    "LoadReport",
    "download_once",
    "freeze_bn",
    "is_bn",
    "is_conv",
    "is_deconv",
    "is_dwconv",
    "load_weights",
    "make_divisible",
    "model_complexity",
    "read_state_dict",
    "unfreeze_bn",
]
