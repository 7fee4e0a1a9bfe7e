"""Knowledge distillation: let the quantized model also learn from the float model's outputs."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from edgeailite.quantization.graph.model import GraphModel, graph_of
from edgeailite.quantization.modules.layer_calls import disable_quantization


def distillation_loss(output: Tensor, target: Tensor, temperature: float) -> Tensor:
    """``T^2 KL(softmax(t / T) || softmax(y / T))``, the distance of class scores from a teacher's.

    Args:
        output: Logits, shape ``(N, C)`` or ``(N, C, ...)``.
        target: The teacher's logits, same shape.
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
    """Identity whose gradient is the output's own, times ``1 - share``; `share` is the loss's."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, loss: Tensor, share: float, num_outputs: int) -> Tensor:
        ctx.share, ctx.num_outputs = share, num_outputs
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        own = torch.full((), ctx.share / ctx.num_outputs, device=grads[0].device)
        return grads[0] * (1.0 - ctx.share), own, None, None


def add_distillation(output: Any, target: Any, share: float, temperature: float) -> Any:
    """Return the outputs; a loss of them has the distillation loss added in its gradients.

    With the loop's loss `L`, the gradients are those of ``(1 - share) L + share KD``, without a
    change to the loop. A loop that multiplies its loss before the backward pass (gradient scaling,
    accumulation) multiplies `L` alone.

    Args:
        output: Logits, classes along axis 1, or a structure of them.
        target: The teacher's logits, of the same structure.
        share: Weight of the distillation loss, above 0 up to 1.
        temperature: See :func:`distillation_loss`; `KD` is the mean over several outputs.
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


class Teacher(GraphModel):
    """The float model that a training learns from; always in evaluation mode.

    It is a child of the wrapper: its weights are in the wrapper's checkpoints.

    Args:
        model: Prepared model; copied.
        share: Weight of the distillation loss, above 0 up to 1.
        temperature: See :func:`distillation_loss`.
    """

    def __init__(self, model: GraphModel, share: float, temperature: float) -> None:
        twin = copy.deepcopy(model)
        super().__init__(twin, graph_of(twin))
        self.share, self.temperature = share, temperature
        self.eval().requires_grad_(False)
        disable_quantization(self)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode, whatever `mode` is."""
        super().train(False)
        return self

    def start_from(self, model: GraphModel) -> None:
        """Take the weights of the prepared model as they are now."""
        self.load_state_dict(model.state_dict())
        disable_quantization(self)

    def distill(self, output: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the student's output, whose backward pass also learns from the float model's.

        Args:
            output: The student's output.
            args: The inputs that it was computed from.
            kwargs: Its inputs by name.
        """
        with torch.no_grad():
            target = self(*args, **kwargs)
        return add_distillation(output, target, self.share, self.temperature)
