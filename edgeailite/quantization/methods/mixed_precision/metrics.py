"""Metrics that a search can keep: accuracy and R^2."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from edgeailite.quantization.graph.modes import in_mode


@torch.no_grad()
def _outputs(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    with in_mode(model, training=False):
        pairs = [(model(inputs), targets) for inputs, targets, *_ in loader]
    if not pairs:
        raise ValueError("There was no batch to evaluate on: eval_dataloader is empty.")
    return torch.cat([o for o, _ in pairs]), torch.cat([t for _, t in pairs])


def accuracy(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Percent of inputs whose largest output is the target's."""
    outputs, targets = _outputs(model, loader)
    return 100 * float((outputs.argmax(1) == targets).float().mean())


def r_squared(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> float:
    """``1 - sum (y - t)^2 / sum (t - mean t)^2``, the mean over the outputs."""
    outputs, targets = _outputs(model, loader)
    targets = targets.reshape(outputs.shape)
    residual = (outputs - targets).square().sum(0)
    return float((1 - residual / (targets - targets.mean(0)).square().sum(0)).mean())


METRICS = {"classification": accuracy, "regression": r_squared}
