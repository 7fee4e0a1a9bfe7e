"""Exponential average of a model's weights, for ``--weight_averaging``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class WeightAverage:
    """Follows a model's parameters and buffers: ``a = decay a + (1 - decay) w`` in each step.

    Args:
        module: The model that is trained.
        decay: Part of the average that stays, 0 up to 1; 0: there is no average.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self._average = module, None
        if decay > 0:
            rule = get_ema_multi_avg_fn(decay)
            self._average = AveragedModel(module, multi_avg_fn=rule, use_buffers=True)

    def update(self) -> None:
        """Follow an optimizer step."""
        if self._average is not None:
            self._average.update_parameters(self.module)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def keep(self) -> None:
        """Give the model the averaged weights for good."""
        self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        if self._average is None or int(self._average.n_averaged) == 0:
            return
        pairs = zip(_tensors(self.module), _tensors(self._average.module), strict=True)
        for own, averaged in pairs:
            before = own.clone()
            own.copy_(averaged)
            averaged.copy_(before)

    def state_dict(self) -> dict[str, Tensor]:
        """The average, for a checkpoint; empty where there is none."""
        return {} if self._average is None else self._average.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on with the average of a checkpoint."""
        if self._average is not None:
            self._average.load_state_dict(state)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())
