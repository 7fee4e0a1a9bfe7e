"""Models whose biases are corrected, and what their layers give."""

import torch
from torch import nn

from edgeailite.quantization.modules.layer_calls import (
    layer_calls,
    recorded_outputs,
)
from edgeailite.quantization.modules.pact2 import quantizers
from edgeailite.quantization.wrappers import QuantCalibrateModule
from tests.quantization.helpers import randomize_batch_norms


def calibrated_model(model: nn.Module, **options) -> nn.Module:
    randomize_batch_norms(model)
    wrapper = QuantCalibrateModule(
        model, torch.randn(1, 3, 8, 8), bitwidth_weights=4, bias_calibration=False,
        histogram_range=False, **options,
    )  # fmt: skip
    wrapper.train()
    wrapper(torch.randn(8, 3, 8, 8))
    for quantizer in quantizers(wrapper.module).values():
        quantizer.observer_enabled = False
    return wrapper.module


def means(model: nn.Module, x: torch.Tensor, first: bool = False):
    """Mean output per channel of each layer, or of the first alone."""
    found, calls = {}, layer_calls(model)[: 1 if first else None]

    def record(call, y):
        found[call.path] = y.mean((0, 2, 3))

    with recorded_outputs(calls, record):
        model(x)
    return found[calls[0].path] if first else found
