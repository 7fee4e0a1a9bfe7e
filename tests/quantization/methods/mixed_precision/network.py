"""A small network, its data, and a search for its bits."""

import torch
from torch import nn

from edgeailite.quantization import TINPUTinyMLPTQFxModule
from edgeailite.quantization.methods.mixed_precision.search import search_bit_widths
from edgeailite.quantization.prepare.tinyml_qconfig import BIT_WIDTHS, weight_spec


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4),
    ).eval()  # fmt: skip


RANDOM = torch.Generator().manual_seed(0)


DATA = [
    (
        torch.randn(16, 1, 8, 8, generator=RANDOM),
        torch.randint(0, 4, (16,), generator=RANDOM),
    )
    for _ in range(3)
]


SIZES = {"0": 72, "3": 1152, "6": 1024}


def tinyml_spec(_, bits):
    return weight_spec(bits)


def make_wrapper(model, found):
    given = {"weight": {"mixed_precision": found.bits}}
    return TINPUTinyMLPTQFxModule(model, qconfig_type=given, verbose=False)


def search(**goal):
    options = {"weight_spec": tinyml_spec, "bit_widths": BIT_WIDTHS}
    return search_bit_widths(network(), make_wrapper, DATA, **options, **goal)
