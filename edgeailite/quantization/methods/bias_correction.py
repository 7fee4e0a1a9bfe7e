"""Empirical bias correction: move each layer's mean output back to its float value, per channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from edgeailite.quantization.graph.recording import hooked
from edgeailite.quantization.methods.channel_means import (
    correctable_bias,
    fit_bias,
    over_processes,
    some_outputs,
)
from edgeailite.quantization.methods.registry import Batches, post_training_method
from edgeailite.quantization.methods.stored_weights import shift_bias
from edgeailite.quantization.modules.layer import per_output
from edgeailite.quantization.modules.layer_calls import (
    LayerCall,
    activation_behind,
    added_half_scale,
    float_copy,
    layer_calls,
)

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel
    from edgeailite.quantization.graph.recording import Hook


@post_training_method("biases")
@torch.no_grad()
def correct_biases(
    model: GraphModel, batches: Batches, reference: GraphModel | None = None
) -> list[str]:
    """Bring every layer's mean per channel, behind its activation function, to its float value.

    A pass in float and a quantized one, batch by batch. A layer is corrected before its output is
    read: what it still lacks is its own error and what quantizing its input adds. The result is the
    mean over the batches.

    Args:
        model: Prepared model whose activations have their ranges; in evaluation mode.
        batches: Inputs of the model, a tuple for each batch.
        reference: The model in float; None: `model` as it is.

    Returns:
        Paths of the layers that were corrected: those with a bias or a batch norm.

    Reference: Nagel et al. 2019, https://arxiv.org/abs/1906.04721, section 4.2 and appendix D
        (empirical bias correction).
    """
    correction, wanted = _Correction(model), reference or float_copy(model)
    for batch in batches:
        with hooked(correction.hooks(correction.keep, wanted)):
            wanted(*batch)
    for number, batch in enumerate(tqdm(batches, "bias correction", leave=False, disable=None)):
        correction.batch = number
        with hooked(correction.hooks(correction.correct, model)):
            model(*batch)
    return list(correction.calls)


class _Correction:
    """Means in float, and the biases that bring the quantized ones to them.

    Args:
        model: Prepared model.

    Attributes:
        calls: The first call of each layer that has a bias, by its path.
        batch: Number of the batch that corrects, from 0.
    """

    def __init__(self, model: GraphModel) -> None:
        self.calls: dict[str, LayerCall] = {}
        for call in layer_calls(model):
            if correctable_bias(call) is not None:
                self.calls.setdefault(call.path, call)
        self.batch = 0
        self._activations = {p: activation_behind(model, c) for p, c in self.calls.items()}
        self._wanted: dict[str, list[Tensor]] = {path: [] for path in self.calls}

    def keep(self, call: LayerCall, output: Tensor) -> None:
        """Keep the mean behind the activation function, in float."""
        values = self._activations[call.path](some_outputs(call, [output]))
        self._wanted[call.path].append(over_processes(values.mean(0)))

    def correct(self, call: LayerCall, output: Tensor) -> Tensor:
        """Correct the bias; return the output with it."""
        values = some_outputs(call, [output - added_half_scale(call.output_quantizer)])
        activate, start = self._activations[call.path], torch.zeros_like(values[0])
        shift = fit_bias(activate, values, self._wanted[call.path][self.batch], start)
        shift = over_processes(shift) / (self.batch + 1)
        shift_bias(call, shift, call.folded().scale)
        return output + per_output(shift, call.weight)

    def hooks(
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
