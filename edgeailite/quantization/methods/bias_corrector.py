"""Bias correction while a wrapper calibrates or trains, batch by batch."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from edgeailite.quantization.methods.channel_means import ChannelMeans, correctable_bias
from edgeailite.quantization.modules.layer_calls import (
    float_arithmetic,
    layer_calls,
    recorded_outputs,
)

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel


class _LoadingHook:
    """Remember that a state dict was loaded, into the model or a part of it."""

    def __init__(self) -> None:
        self.was_called = False

    def __call__(self, module: nn.Module, incompatible_keys: Any) -> None:
        self.was_called = True


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


class BiasCorrector:
    """Move biases so that mean outputs get nearer to float ones, a little with each batch.

    For each layer and channel ``c += rate * (mean(float) - mean(quantized))``; ``bias + c`` is
    used.

    The float pass runs without the corrections made so far: it is the reference, and must not
    follow them.

    Args:
        model: Prepared model. Batch norms and dropout in evaluation mode; quantizers that are in
            training mode update their ranges in the quantized pass.
        rate: Part of the difference that one batch corrects, 0 to 1.
        corrections: Those that a resumed run had made, by path.

    Reference: Nagel et al. 2019, https://arxiv.org/abs/1906.04721, section 4.2 (empirical bias
        correction).
    """

    def __init__(
        self, model: GraphModel, rate: float, corrections: dict[str, Tensor] | None = None
    ) -> None:
        self.model, self.rate = model, rate
        self.calls = layer_calls(model)
        self.biases = {
            call.path: bias for call in self.calls if (bias := correctable_bias(call)) is not None
        }
        self.corrections = {path: torch.zeros_like(bias) for path, bias in self.biases.items()}
        for path, correction in (corrections or {}).items():
            self.corrections[path].copy_(correction)
        self._loading = _LoadingHook()
        handles = [
            module.register_load_state_dict_post_hook(self._loading) for module in model.modules()
        ]
        weakref.finalize(self, _remove, handles)

    @property
    def is_stale(self) -> bool:
        """True if other weights were loaded since: they lack the corrections so far."""
        return self._loading.was_called

    @torch.no_grad()
    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one batch in float and quantized, then correct the biases.

        Args:
            args: The model's inputs.
            kwargs: The model's inputs by name.

        Returns:
            The quantized pass's output.
        """
        target, actual = ChannelMeans(), ChannelMeans()
        with (
            self._uncorrected(),
            float_arithmetic(self.model),
            recorded_outputs(self.calls, target),
        ):
            self.model(*args, **kwargs)
        with recorded_outputs(self.calls, actual):
            output = self.model(*args, **kwargs)
        wanted, found = target.result(), actual.result()
        for path, bias in self.biases.items():
            change = (wanted[path] - found[path]) * self.rate
            self.corrections[path] += change
            bias += change
        return output

    @contextmanager
    def _uncorrected(self) -> Iterator[None]:
        corrected = {path: bias.clone() for path, bias in self.biases.items()}
        try:
            for path, bias in self.biases.items():
                bias -= self.corrections[path]
            yield
        finally:
            for path, bias in self.biases.items():
                bias.copy_(corrected[path])
