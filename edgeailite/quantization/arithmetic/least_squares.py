"""Weights that make up for the errors of their inputs and of each other: tensors only."""

from __future__ import annotations

import torch
from torch import Tensor

# Columns that are rounded before what they leave is handed on to all others at once.
_COLUMNS = 64


def ridge(gram: Tensor, cross: Tensor, weight: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Weights with the least squared error, drawn to given ones.

    ``argmin_W E |y - W x|^2 + a |W - W_0|^2`` with ``a = strength * mean(diag(gram))``.

    Args:
        gram: ``E[x x^T]`` of each group, shape ``(G, d, d)``.
        cross: ``E[x y^T]``, shape ``(G, d, O)``.
        weight: ``W_0``, shape ``(G, O, d)``.
        strength: Above 0.

    Returns:
        The weights, shape ``(G, O, d)``, and the damped Gram matrix that they were found with.
    """
    damped = damped_gram(gram, strength)
    pull = damped - gram
    return torch.linalg.solve(damped, cross + pull @ weight.mT).mT, damped


def damped_gram(gram: Tensor, strength: float) -> Tensor:
    """``gram + strength * mean(diag(gram)) * I``, shape ``(G, d, d)``; never singular."""
    diagonal = gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12) * strength
    return gram + diagonal[:, None, None] * torch.eye(gram.shape[1], device=gram.device)


def round_with_feedback(
    weight: Tensor, scale: Tensor, quant_min: int, quant_max: int, gram: Tensor
) -> Tensor:
    """Round one input's weights after the other; those to come make up for what each leaves.

    The inputs with the largest mean squares are rounded first.

    Args:
        weight: Shape ``(G, O, d)``.
        scale: Scale of each output, shape ``(G, O)``.
        quant_min: Smallest integer, inclusive.
        quant_max: Largest integer, inclusive.
        gram: ``E[x x^T]`` of each group, positive definite, shape ``(G, d, d)``.

    Returns:
        Integers, float32, shape ``(G, O, d)``.

    Reference: Frantar et al. 2022, https://arxiv.org/abs/2210.17323, section 3 (GPTQ).
    """
    order = gram.diagonal(dim1=1, dim2=2).argsort(1, descending=True)
    columns = order[:, None].expand_as(weight)
    left = (weight / scale[..., None]).gather(2, columns)
    gram = gram.gather(1, order[:, :, None].expand_as(gram))
    gram = gram.gather(2, order[:, None].expand_as(gram))
    spread = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(gram)), upper=True)
    rounded = torch.empty_like(left)
    for first in range(0, left.shape[2], _COLUMNS):
        last = min(first + _COLUMNS, left.shape[2])
        errors = torch.empty_like(left[..., first:last])
        for column in range(first, last):
            value = left[..., column]
            rounded[..., column] = value.round().clamp(quant_min, quant_max)
            error = (value - rounded[..., column]) / spread[:, None, column, column]
            errors[..., column - first] = error
            ahead = slice(column + 1, last)
            left[..., ahead] -= error[..., None] * spread[:, None, column, ahead]
        left[..., last:] -= errors @ spread[:, first:last, last:]
    return torch.empty_like(rounded).scatter_(2, columns, rounded)
