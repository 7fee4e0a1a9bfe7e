"""Batch norm statistics measured anew on the quantized network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from edgeailite.quantization.graph.modes import modes_kept
from edgeailite.quantization.methods.bias_fitting import over_processes
from edgeailite.quantization.modules.layer_calls import layer_calls

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel
    from edgeailite.quantization.methods.registry import Batches


@torch.no_grad()
def reestimate_batch_norms(model: GraphModel, batches: Batches) -> list[str]:
    """Give every batch norm the mean statistics of its quantized layer's output on the data.

    Under ``torch.distributed`` they are the mean over all processes.

    Towards the end of a quantization-aware training weights jump between grid points from one
    iteration to the next, and running averages are those of neither.

    Args:
        model: Prepared model; ranges, weights and everything else stay as they are, and it ends in
            evaluation mode.
        batches: Inputs of the model, a tuple for each batch. Large batches are better: a variance
            is that of a single batch.

    Returns:
        Paths of the layers whose batch norms were measured.

    Raises:
        ValueError: There are no batches.

    Reference: Nagel et al. 2022, https://arxiv.org/abs/2203.11086, section 3.2.
    """
    if not batches:
        raise ValueError("There was no batch to measure batch norm statistics on.")
    norms = {
        call.path: call.batch_norm
        for call in layer_calls(model)
        if isinstance(call.batch_norm, _BatchNorm)
    }
    model.eval()
    with modes_kept(model), _averaging(list(norms.values())):
        for batch in batches:
            model(*batch)
    for norm in norms.values():
        for statistic in (norm.running_mean, norm.running_var):
            assert statistic is not None
            over_processes(statistic)
    return list(norms)


@contextmanager
def _averaging(norms: list[_BatchNorm]) -> Iterator[None]:
    """Let batch norms start their statistics anew, as the mean over all batches."""
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            # Without a momentum the average over all batches is kept; the first one replaces.
            norm.training, norm.momentum = True, None
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.zero_()
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
