"""Batch norm statistics of the quantized network, measured anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from edgeailite.quantization.graph.model import GraphModel
from edgeailite.quantization.modules.layer_calls import layer_calls


@torch.no_grad()
def reestimate_batch_norms(model: GraphModel, batches: Sequence[tuple[Any, ...]]) -> list[str]:
    """Give every batch norm the mean statistics of what its quantized layer gives on the data.

    Under ``torch.distributed`` they are the mean over all processes.

    Towards the end of a quantization-aware training weights jump between grid points from step to
    step, and running averages are those of neither.

    Args:
        model: Prepared model; ranges, weights and everything else stay as they are, and it ends in
            evaluation mode.
        batches: Inputs of the model, a tuple for each batch; large ones, for each batch's variance
            is that of itself.

    Returns:
        Paths of the layers whose batch norms were measured.

    Raises:
        ValueError: There are no batches.

    Reference: Nagel et al. 2022, https://arxiv.org/abs/2203.11086, section 3.2.
    """
    if not batches:
        raise ValueError("There was no batch to measure batch norm statistics on.")
    norms = {
        unit.path: unit.batch_norm
        for unit in layer_calls(model)
        if isinstance(unit.batch_norm, nn.modules.batchnorm._BatchNorm)
    }
    momenta = {path: norm.momentum for path, norm in norms.items()}
    model.eval()
    try:
        for norm in norms.values():
            # Without a momentum the average over all batches is kept; the first one replaces.
            norm.training, norm.momentum = True, None
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.zero_()
        for batch in batches:
            model(*batch)
        if dist.is_available() and dist.is_initialized():
            for norm in norms.values():
                for statistic in (norm.running_mean, norm.running_var):
                    assert statistic is not None
                    dist.all_reduce(statistic)
                    statistic.div_(dist.get_world_size())
    finally:
        for path, norm in norms.items():
            norm.training, norm.momentum = False, momenta[path]
    return list(norms)
