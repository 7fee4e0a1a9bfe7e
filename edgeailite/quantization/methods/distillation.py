"""Knowledge distillation: the quantized model also learns from the float model's outputs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten


def distillation_loss(output: Tensor, target: Tensor, temperature: float) -> Tensor:
    """How far class scores are from the teacher's: ``T^2 KL(softmax(t / T) || softmax(y / T))``.

    Args:
        output: Logits, shape ``(N, C)`` or ``(N, C, ...)``.
        target: The teacher's, same shape.
        temperature: `T`; with a higher one the unlikely classes count for more.

    Returns:
        Mean over everything but the classes, shape ``()``.

    Reference: Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 2.
    """
    own = F.log_softmax(output.float() / temperature, 1)
    other = F.log_softmax(target.float() / temperature, 1)
    divergence = F.kl_div(own, other, reduction="none", log_target=True).sum(1)
    return divergence.mean() * temperature**2


class _Mixed(torch.autograd.Function):
    """The identity; of the gradients, `share` is the loss's and the rest the output's own."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, loss: Tensor, share: float, num_outputs: int) -> Tensor:
        ctx.share, ctx.num_outputs = share, num_outputs
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        own = torch.full((), ctx.share / ctx.num_outputs, device=grads[0].device)
        return grads[0] * (1.0 - ctx.share), own, None, None


def add_distillation(output: Any, target: Any, share: float, temperature: float) -> Any:
    """The outputs themselves; whoever computes a loss of them minimizes another one as well.

    With the loop's loss `L`, the gradients are those of ``(1 - share) L + share KD``, without a
    change to the loop. A loop that multiplies its loss before the backward pass (gradient scaling,
    accumulation) multiplies `L` alone.

    Args:
        output: Logits, classes along axis 1, or a structure of them.
        target: The teacher's, of the same structure.
        share: Above 0 up to 1.
        temperature: See :func:`distillation_loss`; the mean over several outputs counts.
    """
    leaves, structure = tree_flatten(output)
    tensors = [v for v in leaves if isinstance(v, Tensor) and v.requires_grad]
    pairs = zip(leaves, tree_leaves(target), strict=True)
    mixed = [
        _Mixed.apply(own, distillation_loss(own, other, temperature), share, len(tensors))
        if isinstance(own, Tensor) and own.requires_grad
        else own
        for own, other in pairs
    ]
    return tree_unflatten(mixed, structure)
