"""What kind of module is this, and batch norm's two modes."""

from typing import TypeGuard

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["freeze_bn", "is_bn", "is_conv", "is_deconv", "is_dwconv", "unfreeze_bn"]


def is_conv(module: nn.Module) -> TypeGuard[nn.Conv1d | nn.Conv2d | nn.Conv3d]:
    """Whether it is a convolution over one, two or three axes (not a transposed one)."""
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)


def is_deconv(module: nn.Module) -> bool:
    """Whether it is a transposed convolution over one, two or three axes."""
    return isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)


def is_dwconv(module: nn.Module) -> bool:
    """Whether it is a depthwise convolution: several groups, one input channel in each."""
    return is_conv(module) and module.groups == module.in_channels > 1


def is_bn(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Whether it is a batch norm of any number of axes, synchronized or not."""
    return isinstance(module, _BatchNorm)


def freeze_bn(model: nn.Module) -> None:
    """Let every batch norm use its running statistics and leave them as they are.

    Activation quantizers go on as they are. ``model.train()`` undoes it, so in a training loop call
    it after ``model.train()``, each epoch.

    Args:
        model: Changed in place.
    """
    _set_bn_mode(model, False)


def unfreeze_bn(model: nn.Module) -> None:
    """Put every batch norm back into the mode of the model: the inverse of :func:`freeze_bn`.

    Args:
        model: Changed in place.
    """
    _set_bn_mode(model, model.training)


def _set_bn_mode(model: nn.Module, training: bool) -> None:
    for module in filter(is_bn, model.modules()):
        # Not train() or eval(): they reach a quantizer that wrapping put below the batch norm.
        module.training = training
