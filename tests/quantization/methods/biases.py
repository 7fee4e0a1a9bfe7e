"""Models whose biases are corrected, and what their layers give."""

import torch
from torch import nn

from edgeailite.quantization.graph.recording import hooked
from edgeailite.quantization.modules.layer_calls import added_half_scale, layer_calls
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

    def hook_of(call):
        half = added_half_scale(call.output_quantizer)
        return lambda _module, _args, y: found.__setitem__(call.path, (y - half).mean((0, 2, 3)))

    with hooked((call.layer, hook_of(call)) for call in calls), torch.no_grad():
        model(x)
    return found[calls[0].path] if first else found
