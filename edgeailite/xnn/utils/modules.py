"""Predicates for kinds of modules; freezing of batch norm."""

from typing import TypeGuard

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["freeze_bn", "is_bn", "is_conv", "is_deconv", "is_dwconv", "unfreeze_bn"]


def is_conv(module: nn.Module) -> TypeGuard[nn.Conv1d | nn.Conv2d | nn.Conv3d]:
    """Return True for a convolution over one, two or three axes (not a transposed one)."""
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)


def is_deconv(module: nn.Module) -> bool:
    """Return True for a transposed convolution over one, two or three axes."""
    return isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)


def is_dwconv(module: nn.Module) -> bool:
    """Return True for a depthwise convolution: several groups, one input channel in each."""
    return is_conv(module) and module.groups == module.in_channels > 1


def is_bn(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Return True for a batch norm of any number of axes, synchronized or not."""
    return isinstance(module, _BatchNorm)


def freeze_bn(model: nn.Module) -> None:
    """Make every batch norm use its running statistics, without updating them.

    Activation quantizers are not affected. ``model.train()`` reverts this, so call it after
    ``model.train()`` in each epoch.

    Args:
        model: Changed in place.
    """
    _set_bn_mode(model, False)


def unfreeze_bn(model: nn.Module) -> None:
    """Return every batch norm to the model's mode; the inverse of :func:`freeze_bn`.

    Args:
        model: Changed in place.
    """
    _set_bn_mode(model, model.training)


def _set_bn_mode(model: nn.Module, training: bool) -> None:
    for module in filter(is_bn, model.modules()):
        # Not train() or eval(): they reach a quantizer that wrapping put below the batch norm.
        module.training = training
