"""The model that a user means, from what is given to a wrapper."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from torch.nn.utils.spectral_norm import SpectralNorm

from edgeailite.quantization.graph.behavior import named_tensors

# Types of torch's wrappers, the attribute that holds the model, and what made them.
_WRAPPERS = {
    "OptimizedModule": ("_orig_mod", "torch.compile"),
    "DataParallel": ("module", "DataParallel"),
    "DistributedDataParallel": ("module", "DistributedDataParallel"),
}


def original_model(model: nn.Module) -> nn.Module:
    """Unwrap a model that is compiled or wrapped for data parallelism; refuse unfit ones.

    Args:
        model: What a wrapper was given.

    Raises:
        TypeError: It is no module.
        ValueError: It is scripted, lazy and not initialized, on the meta device, its parameters are
            not float32, or it has torch's older spectral norm.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give a torch.nn.Module.")
    if type(model).__module__.startswith("torch.") and type(model).__name__ in _WRAPPERS:
        attribute, maker = _WRAPPERS[type(model).__name__]
        warnings.warn(
            f"The model is wrapped by {maker}: its .{attribute} is quantized. Use {maker} on the "
            "quantization wrapper instead.",
            stacklevel=5,
        )
        return original_model(getattr(model, attribute))
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(
            f"{type(model).__name__} is scripted: torch.jit keeps no Python modules to quantize. "
            "Give the model that it was made from."
        )
    for name, parameter in named_tensors(model, "_parameters"):
        _check_parameter(name, parameter)
    for path, module in nn.Module.named_modules(model):
        _check_hooks(path, module)
    return model


def _check_hooks(path: str, module: nn.Module) -> None:
    if any(isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values()):
        raise ValueError(
            f"'{path}' has torch.nn.utils.spectral_norm, which overwrites its buffers as no graph "
            "can. Use torch.nn.utils.parametrizations.spectral_norm, or wrap the "
            "model after torch.nn.utils.remove_spectral_norm."
        )


def _check_parameter(name: str, parameter: Any) -> None:
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        raise ValueError(
            f"'{name}' is a lazy parameter without a shape yet. Run one batch through the model, "
            "then wrap it."
        )
    if parameter.is_meta:
        raise ValueError(
            f"'{name}' is on the meta device and has no values. Load the weights, then wrap the "
            "model."
        )
    if parameter.is_floating_point() and parameter.dtype != torch.float32:
        raise ValueError(
            f"'{name}' is {parameter.dtype}; quantization needs float32 parameters. Wrap "
            "model.float(); for training in half precision use torch.autocast around the wrapper."
        )
