"""Empirical bias correction: bring each channel back to its float values, by its bias."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from tqdm import tqdm

from edgeailite.quantization.graph.recording import hooked
from edgeailite.quantization.methods.bias_fitting import (
    correctable_bias,
    nearest_bias,
    some_outputs,
)
from edgeailite.quantization.methods.registry import Batches, post_training_method
from edgeailite.quantization.methods.stored_weights import shift_bias
from edgeailite.quantization.modules.layer import per_output
from edgeailite.quantization.modules.layer_calls import (
    LayerCall,
    activation_behind,
    added_half_scale,
    float_arithmetic,
    float_copy,
    layer_calls,
)

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel
    from edgeailite.quantization.graph.recording import Hook

# Least weight of a batch: the correction is the mean over the batches, later an exponential one.
MIN_AVERAGING_WEIGHT = 0.01
# Values of a batch that are compared: in all, and of a channel.
_VALUES = 1 << 26
_FEWEST_VALUES, _MOST_VALUES = 1 << 9, 1 << 14


class BiasCorrector:
    """Move biases so that values behind the activation functions are nearest to those in float.

    Layers are corrected in the order of the graph, each before its output is read: what a layer
    still lacks is its own error and what quantizing its input adds. Only values that the activation
    function does not cut off count: of the others a few outliers would move all.

    Args:
        model: Prepared model. Batch norms and dropout in evaluation mode; quantizers that are in
            training mode update their ranges in the quantized pass.
        rate: Part of the difference that one batch corrects, 0 to 1. None: the n-th batch, from 1,
            corrects ``max(1 / n, 0.01)`` of it: the mean over the batches.
        corrections: Those that a resumed run had made, by path.
        num_batches: Batches that they were made of.

    Attributes:
        corrections: Those made so far, in the units of the biases, by the layers' paths.
        num_batches: Batches they were made of.

    Reference: Nagel et al. 2019, https://arxiv.org/abs/1906.04721, section 4.2 and appendix D
        (empirical bias correction).
    """

    def __init__(
        self,
        model: GraphModel,
        rate: float | None = None,
        corrections: dict[str, Tensor] | None = None,
        num_batches: int = 0,
    ) -> None:
        self.model, self.rate, self.num_batches = model, rate, num_batches
        # The first call of each layer that has a bias, by its path.
        self.calls: dict[str, LayerCall] = {}
        for call in layer_calls(model):
            if correctable_bias(call) is not None:
                self.calls.setdefault(call.path, call)
        self._activations = {p: activation_behind(model, c) for p, c in self.calls.items()}
        channels = sum(_bias(call).numel() for call in self.calls.values())
        self._values = min(max(_VALUES // max(channels, 1), _FEWEST_VALUES), _MOST_VALUES)
        known = corrections or {}
        self.corrections = {
            path: known[path].clone() if path in known else torch.zeros_like(_bias(call))
            for path, call in self.calls.items()
        }
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
    def run(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], reference: GraphModel | None = None
    ) -> Any:
        """Run one batch in float and quantized, and correct the biases on the way.

        Args:
            args: The model's inputs.
            kwargs: The model's inputs by name.
            reference: The model in float; None: `model` without the corrections made so far.

        Returns:
            The quantized pass's output.
        """
        wanted: dict[str, Tensor] = {}

        def keep(call: LayerCall, output: Tensor) -> None:
            values = some_outputs(call, [output], self._values)
            wanted[call.path] = self._activations[call.path](values)

        if reference is not None:
            with hooked(self._hooks(keep, reference)):
                reference(*args, **kwargs)
        else:
            hooks = self._hooks(keep, self.model)
            with self._uncorrected(), float_arithmetic(self.model), hooked(hooks):
                self.model(*args, **kwargs)
        self.num_batches += 1
        rate = max(1 / self.num_batches, MIN_AVERAGING_WEIGHT) if self.rate is None else self.rate

        def correct(call: LayerCall, output: Tensor) -> Tensor:
            output_before = output - added_half_scale(call.output_quantizer)
            made = some_outputs(call, [output_before], self._values)
            shift = nearest_bias(self._activations[call.path], made, wanted.pop(call.path))
            bias = _bias(call)
            before = bias.clone()
            shift_bias(call, shift * rate)
            moved = bias - before
            self.corrections[call.path] += moved
            return output + per_output(moved, call.weight)

        with hooked(self._hooks(correct, self.model)):
            return self.model(*args, **kwargs)

    def _hooks(
        self, function: Callable[[LayerCall, Tensor], Any], model: nn.Module
    ) -> list[tuple[nn.Module, Hook]]:
        """Let `function` look at the output of each layer of `model` once, and replace it."""
        done: set[str] = set()

        def hook_of(call: LayerCall) -> Hook:
            def hook(_module: nn.Module, _args: Any, output: Tensor) -> Any:
                if call.path in done:
                    return None
                done.add(call.path)
                return function(call, output)

            return hook

        return [(model.get_submodule(path), hook_of(call)) for path, call in self.calls.items()]

    @contextmanager
    def _uncorrected(self) -> Iterator[None]:
        biases = {path: _bias(call) for path, call in self.calls.items()}
        corrected = {path: bias.clone() for path, bias in biases.items()}
        try:
            for path, bias in biases.items():
                bias -= self.corrections[path]
            yield
        finally:
            for path, bias in biases.items():
                bias.copy_(corrected[path])


def _bias(call: LayerCall) -> Tensor:
    bias = correctable_bias(call)
    assert bias is not None
    return bias.detach()


class _LoadingHook:
    """Remember that a state dict was loaded, into the model or a part of it."""

    def __init__(self) -> None:
        self.was_called = False

    def __call__(self, module: nn.Module, incompatible_keys: Any) -> None:
        self.was_called = True


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


@post_training_method("biases")
def correct_biases(
    model: GraphModel, batches: Batches, reference: GraphModel | None = None
) -> list[str]:
    """Bring every channel, behind its layer's activation function, nearest to its float values.

    A pass in float and a quantized one, batch by batch; the result is the mean over the batches.
    See :class:`BiasCorrector`.

    Args:
        model: Prepared model whose activations have their ranges; in evaluation mode.
        batches: Inputs of the model, a tuple for each batch.
        reference: The model in float; None: `model` as it is.

    Returns:
        Paths of the layers that were corrected: those with a bias or a batch norm.
    """
    corrector, wanted = BiasCorrector(model), reference or float_copy(model)
    for batch in tqdm(batches, "bias correction", leave=False, disable=None):
        corrector.run(batch, {}, wanted)
    return list(corrector.calls)
