"""Convolution blocks: convolution, normalization, activation, each of the latter two optional."""

from collections.abc import Callable

from torch import nn

__all__ = ["ConvDWSepNormAct", "ConvNormAct", "DeconvNormAct", "ModuleFactory"]

ModuleFactory = Callable[..., nn.Module]


def _same_padding(kernel_size: int, dilation: int) -> int:
    """Padding with which an odd kernel at stride 1 keeps the size: ``d * (k - 1) / 2``."""
    if kernel_size % 2 == 0:
        raise ValueError(
            f"kernel_size is {kernel_size}; it must be odd, for only then can padding be the same "
            f"on both sides."
        )
    return dilation * (kernel_size - 1) // 2


def _norm_and_activation(
    channels: int, norm_layer: ModuleFactory | None, activation: ModuleFactory | None
) -> list[nn.Module]:
    layers = [] if norm_layer is None else [norm_layer(channels)]
    return layers if activation is None else [*layers, activation()]


class ConvNormAct(nn.Sequential):
    """Convolution, normalization, activation.

    The padding is computed: at stride 1 the size is kept, at stride s it is ``ceil(size / s)``.
    The convolution has a bias only if no normalization follows.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the kernel, odd.
        stride: Stride of the kernel, in pixels.
        dilation: Distance of the kernel's taps, in pixels.
        groups: Groups of channels that do not mix; `in_channels` makes it depthwise.
        norm_layer: Makes the normalization from a number of channels; None leaves it out.
        activation: Makes the activation, without arguments; None leaves it out.

    Raises:
        ValueError: `kernel_size` is even.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        *,
        dilation: int = 1,
        groups: int = 1,
        norm_layer: ModuleFactory | None = nn.BatchNorm2d,
        activation: ModuleFactory | None = nn.ReLU,
    ) -> None:
        conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding=_same_padding(kernel_size, dilation),
            dilation=dilation,
            groups=groups,
            bias=norm_layer is None,
        )
        super().__init__(conv, *_norm_and_activation(out_channels, norm_layer, activation))


class ConvDWSepNormAct(nn.Sequential):
    """Depthwise convolution followed by a 1x1 convolution, each a :class:`ConvNormAct`.

    With a `group_width` above 1, the first convolution has groups of so many channels.

    Args:
        in_channels: Channels of the input and of the depthwise part.
        out_channels: Channels of the output.
        kernel_size: Side of the depthwise kernel, odd.
        stride: Stride of the depthwise kernel, in pixels.
        dilation: Distance of the depthwise kernel's taps, in pixels.
        group_width: Channels of a group of the first part, a divisor of `in_channels`.
        norm_layer: Normalization of the 1x1 part; None leaves it out.
        activation: Activation of the 1x1 part; None leaves it out.
        dw_norm_layer: Normalization of the depthwise part; None leaves it out.
        dw_activation: Activation of the depthwise part; None leaves it out.

    Raises:
        ValueError: `kernel_size` is even, or the groups don't divide the channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        *,
        dilation: int = 1,
        group_width: int = 1,
        norm_layer: ModuleFactory | None = nn.BatchNorm2d,
        activation: ModuleFactory | None = nn.ReLU,
        dw_norm_layer: ModuleFactory | None = nn.BatchNorm2d,
        dw_activation: ModuleFactory | None = nn.ReLU,
    ) -> None:
        if in_channels % group_width:
            raise ValueError(
                f"group_width is {group_width}; it must divide the {in_channels} input channels."
            )
        depthwise = ConvNormAct(
            in_channels,
            in_channels,
            kernel_size,
            stride,
            dilation=dilation,
            groups=in_channels // group_width,
            norm_layer=dw_norm_layer,
            activation=dw_activation,
        )
        pointwise = ConvNormAct(
            in_channels, out_channels, 1, norm_layer=norm_layer, activation=activation
        )
        super().__init__(depthwise, pointwise)


class DeconvNormAct(nn.Sequential):
    """Transposed convolution, normalization, activation; the output is `stride` times larger.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the kernel, at least `stride`.
        stride: Output size over input size.
        groups: Groups of channels that do not mix.
        norm_layer: Makes the normalization from a number of channels; None leaves it out.
        activation: Makes the activation, without arguments; None leaves it out.

    Raises:
        ValueError: `kernel_size` leaves pixels uncovered, or cannot give the exact size.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 4,
        stride: int = 2,
        *,
        groups: int = 1,
        norm_layer: ModuleFactory | None = nn.BatchNorm2d,
        activation: ModuleFactory | None = nn.ReLU,
    ) -> None:
        # (in - 1) * s - 2 * padding + k + output_padding = in * s
        output_padding = (kernel_size - stride) % 2
        if kernel_size < stride or output_padding >= stride:
            raise ValueError(
                f"kernel_size {kernel_size} with stride {stride} cannot enlarge by exactly "
                f"{stride}; use a kernel of at least {stride} (odd where stride is 1)."
            )
        deconv = nn.ConvTranspose2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding=(kernel_size - stride + output_padding) // 2,
            output_padding=output_padding,
            groups=groups,
            bias=norm_layer is None,
        )
        super().__init__(deconv, *_norm_and_activation(out_channels, norm_layer, activation))
