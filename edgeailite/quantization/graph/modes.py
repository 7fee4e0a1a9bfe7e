"""Modes and buffers of a model: asked for in a graph, set for a while, put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def is_training(module: nn.Module) -> bool:
    """Return True if `module` is in training mode, as a graph asks while it runs."""
    return module.training


def rate_in_training(module: nn.Module, rate: float) -> float:
    """Return a rate of dropout if `module` is in training mode, else 0."""
    return rate if module.training else 0.0


class TrainingOnly(nn.Module):
    """An operation that only training does: its value in training, its first operand else.

    Args:
        operation: Called with the operands behind the flag.
    """

    def __init__(self, operation: nn.Module) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, x: Tensor, training: bool, *operands: Tensor) -> Tensor:
        """Give `x`, or what the operation computes in training."""
        return self.operation(*operands) if training else x


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Restore the mode of every module at the end.

    The flags are set back one by one, without a call of ``train()``: a wrapper counts no epoch, and
    a module that stayed in evaluation mode on its own (a frozen batch norm) still does.
    """
    before = [(module, module.training) for module in nn.Module.modules(model)]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Put all of `model` into training or evaluation mode; see :func:`modes_kept` for the end."""
    with modes_kept(model):
        type(model).train(model, training)  # an attribute of the model may hide it
        yield


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put every buffer back at the end, the very tensor with the values that it had."""
    kept = [
        (module._buffers, name, buffer, buffer.clone())
        for module in nn.Module.modules(model)
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffers, name, buffer, values in kept:
                buffers[name] = buffer.copy_(values)
