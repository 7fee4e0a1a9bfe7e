"""Empirical bias correction: move each layer's mean output back to its float value, per channel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from edgeailite.quantization.graph.model import graph_of
from edgeailite.quantization.graph.running import sweep
from edgeailite.quantization.methods.channel_means import (
    ChannelMeans,
    channel_mean,
    correctable_bias,
    over_processes,
)
from edgeailite.quantization.methods.registry import Batches, post_training_method
from edgeailite.quantization.modules.layer_calls import (
    added_half_scale,
    float_arithmetic,
    layer_call,
    layer_calls,
    recorded_outputs,
)

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel


@post_training_method("biases")
@torch.no_grad()
def correct_biases(model: GraphModel, batches: Batches) -> list[str]:
    """Bring every layer's mean output per channel to its float value, one layer after the other.

    A layer is corrected when all in front of it are: what it still lacks is its own error and what
    quantizing its input adds. One pass in float, one over the quantized graph.

    Args:
        model: Prepared model whose activations have their ranges; in evaluation mode.
        batches: Inputs of the model, a tuple for each batch.

    Returns:
        Paths of the layers that were corrected: those with a bias or a batch norm.

    Reference: Nagel et al. 2019, https://arxiv.org/abs/1906.04721, section 4.2 and appendix D
        (empirical bias correction).
    """
    target = ChannelMeans()
    with float_arithmetic(model), recorded_outputs(layer_calls(model), target):
        for batch in batches:
            model(*batch)
    wanted = target.result()
    corrected: list[str] = []
    runs = tqdm(
        sweep(model, batches),
        "bias correction",
        len(graph_of(model).nodes),
        leave=False,
        disable=None,
    )
    for run in runs:
        call = layer_call(model, run.node)
        bias = None if call is None else correctable_bias(call)
        if call is None or bias is None or call.path in corrected:
            continue
        half = added_half_scale(call.output_quantizer)
        means = [channel_mean(call, output - half) for output in run.outputs]
        found = over_processes(torch.stack(means).mean(0))
        bias += wanted[call.path] - found
        corrected.append(call.path)
        run.recompute()
    return corrected
