"""Building blocks that the classification families share."""

from collections.abc import Sequence
from functools import partial

from torch import nn

from edgeailite.xnn.utils import is_bn, is_conv

__all__ = ["RELU", "RELU6", "STRIDES", "check_strides", "init_weights"]

RELU = partial(nn.ReLU, inplace=True)
RELU6 = partial(nn.ReLU6, inplace=True)
STRIDES = (2, 2, 2, 2, 2)


def check_strides(strides: Sequence[int] | None) -> tuple[int, ...]:
    """The strides of the five stages, (2, 2, 2, 2, 2) where None.

    Raises:
        ValueError: There are not five strides, or one is neither 1 nor 2.
    """
    given = STRIDES if strides is None else tuple(strides)
    if len(given) != len(STRIDES) or not set(given) <= {1, 2}:
        raise ValueError(
            f"strides is {given}; give one stride, 1 or 2, for each of the five stages, such as "
            f"(1, 1, 1, 2, 2) for images of 32 pixels."
        )
    return given


def init_weights(model: nn.Module, linear_std: float | None = None) -> None:
    """Draw initial weights: He et al. 2015 by fan-out, batch norm as identity.

    Args:
        model: Changed in place.
        linear_std: Standard deviation of the linear layers' weights, whose biases become zero;
            None leaves both as torch draws them.

    Reference: https://arxiv.org/abs/1502.01852, eq. 14.
    """
    for module in model.modules():
        if is_conv(module):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif is_bn(module) and module.weight is not None:
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and linear_std is not None:
            nn.init.normal_(module.weight, 0.0, linear_std)
            nn.init.zeros_(module.bias)
