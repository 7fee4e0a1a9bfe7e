"""Element-wise arithmetic and concatenation as modules.

A module gives the value it computes a name in the graph, so the quantizer of that value has a
place in the state dict. Use one instance per place in the network.
"""

import functools
import operator
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["AddBlock", "CatBlock", "MultBlock", "SubtractBlock"]

Inputs = Tensor | Sequence[Tensor]


def _as_sequence(inputs: tuple[Inputs, ...], least: int, owner: nn.Module) -> Sequence[Tensor]:
    """Make one sequence of several tensors, or of one list or tuple of them."""
    # fx traces with proxies: only list and tuple are told apart, everything else is a tensor.
    tensors = inputs[0] if len(inputs) == 1 and isinstance(inputs[0], list | tuple) else inputs
    if len(tensors) < least:
        raise ValueError(
            f"{type(owner).__name__} got {len(tensors)} tensor(s), it needs at least {least}. "
            f"Give them as separate arguments or as one list or tuple."
        )
    return tensors  # type: ignore[return-value]


class AddBlock(nn.Module):
    """Sum of two or more tensors: ``x0 + x1 + ...``."""

    def forward(self, *inputs: Inputs) -> Tensor:
        """Add tensors of broadcastable shapes.

        Args:
            *inputs: Two or more tensors, or one list or tuple of them.

        Returns:
            The sum, in the broadcast shape.

        Raises:
            ValueError: Fewer than two tensors are given.
        """
        return functools.reduce(operator.add, _as_sequence(inputs, 2, self))


class SubtractBlock(nn.Module):
    """The first tensor minus each of the others: ``x0 - x1 - ...``."""

    def forward(self, *inputs: Inputs) -> Tensor:
        """Subtract tensors of broadcastable shapes.

        Args:
            *inputs: Two or more tensors, or one list or tuple of them.

        Returns:
            The difference, in the broadcast shape.

        Raises:
            ValueError: Fewer than two tensors are given.
        """
        return functools.reduce(operator.sub, _as_sequence(inputs, 2, self))


class MultBlock(nn.Module):
    """Product of two or more tensors, element by element: ``x0 * x1 * ...``."""

    def forward(self, *inputs: Inputs) -> Tensor:
        """Multiply tensors of broadcastable shapes.

        Args:
            *inputs: Two or more tensors, or one list or tuple of them.

        Returns:
            The product, in the broadcast shape.

        Raises:
            ValueError: Fewer than two tensors are given.
        """
        return functools.reduce(operator.mul, _as_sequence(inputs, 2, self))


class CatBlock(nn.Module):
    """Concatenation of tensors.

    Args:
        dim: The axis to join along; 1 is the channel axis of NCHW.
    """

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, *inputs: Inputs) -> Tensor:
        """Join tensors that agree in every axis but `dim`.

        Args:
            *inputs: One or more tensors, or one list or tuple of them.

        Returns:
            The joined tensor.

        Raises:
            ValueError: No tensor is given.
        """
        return torch.cat(tuple(_as_sequence(inputs, 1, self)), dim=self.dim)

    def extra_repr(self) -> str:
        """Format the axis for ``print(model)``."""
        return f"dim={self.dim}"
