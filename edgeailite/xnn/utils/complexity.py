"""Count a model's multiply-accumulates and parameters."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgeailite.xnn.utils.modules import is_conv, is_deconv, is_dwconv

__all__ = ["Complexity", "model_complexity"]


@dataclass(frozen=True)
class Complexity:
    """Multiply-accumulates and parameters of a model for one input.

    Attributes:
        macs: Multiply-accumulates of each layer that has any, by module path; a layer that is
            called several times counts as often.
        depthwise: Paths of the depthwise layers among them.
        params: Number of parameters, each counted once.
        input_shape: Shape of the input, batch axis included.
    """

    macs: dict[str, int]
    depthwise: frozenset[str]
    params: int
    input_shape: tuple[int, ...] = field(default=())

    @property
    def gmacs(self) -> float:
        """Multiply-accumulates of the whole model, in 10^9."""
        return sum(self.macs.values()) / 1e9

    @property
    def mparams(self) -> float:
        """Parameters of the whole model, in 10^6."""
        return self.params / 1e6

    def __str__(self) -> str:
        """Format the totals as one line for a log."""
        total = sum(self.macs.values())
        dw = sum(self.macs[name] for name in self.depthwise)
        share = dw / total if total else 0.0
        shape = "x".join(map(str, self.input_shape))
        return (
            f"{self.gmacs:.3f} GMAC ({share:.0%} depthwise), {self.mparams:.2f} Mparam "
            f"for an input of {shape}"
        )


def model_complexity(model: nn.Module, input_shape: Sequence[int]) -> Complexity:
    """Count multiply-accumulates and parameters by running the model once, on zeros.

    Only modules count: convolutions, transposed convolutions and linear layers. Functional calls
    (``F.conv2d``, ``@``) and element-wise operations do not. The model's mode and statistics stay
    unchanged.

    Args:
        model: Any model that takes one tensor.
        input_shape: Shape of the input with its batch axis, such as ``(1, 3, 224, 224)``.

    Returns:
        The counts, by layer and in total.
    """
    macs: dict[str, int] = {}
    depthwise: set[str] = set()

    def count(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            macs[name] = macs.get(name, 0) + _macs(module, inputs[0], output)
            if is_dwconv(module):
                depthwise.add(name)

        return hook

    counted = [(n, m) for n, m in model.named_modules() if _has_macs(m)]
    handles = [module.register_forward_hook(count(name)) for name, module in counted]
    modes = {module: module.training for module in model.modules()}
    parameter = next(model.parameters(), torch.empty(0))
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(*input_shape, dtype=parameter.dtype, device=parameter.device))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    params = sum(p.numel() for p in model.parameters())
    return Complexity(macs, frozenset(depthwise), params, tuple(input_shape))


def _has_macs(module: nn.Module) -> bool:
    return is_conv(module) or is_deconv(module) or isinstance(module, nn.Linear)


def _macs(module: nn.Module, x: Tensor, output: Tensor) -> int:
    """Count one use of each weight per output pixel (deconvolution: per input pixel)."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    per_position = x if is_deconv(module) else output
    if isinstance(module, nn.Linear):
        return output.numel() // module.out_features * weight.numel()
    batch, _, *area = per_position.shape
    return batch * math.prod(area) * weight.numel()
