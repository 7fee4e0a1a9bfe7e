"""Training and evaluation mode: asked for in a graph, and set for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def is_training(module: nn.Module) -> bool:
    """Return True if `module` is in training mode, as a graph asks while it runs."""
    return module.training


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Restore the mode of every module at the end.

    The flags are set back one by one, without a call of ``train()``: a wrapper counts no epoch, and
    a module that stayed in evaluation mode on its own (a frozen batch norm) still does.
    """
    before = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Put all of `model` into training or evaluation mode; see :func:`modes_kept` for the end."""
    with modes_kept(model):
        model.train(training)
        yield
