import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn

from edgeailite.xnn.layers.conv import ConvDWSepNormAct, ConvNormAct, DeconvNormAct


def kinds(block):
    return [type(m) for m in block.modules() if not list(m.children())]


@given(
    kernel_size=st.sampled_from([1, 3, 5, 7]),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 3),
    size=st.integers(4, 12),
)
def test_conv_output_is_the_input_over_the_stride_rounded_up(kernel_size, stride, dilation, size):
    block = ConvNormAct(2, 4, kernel_size, stride, dilation=dilation)
    side = math.ceil(size / stride)
    assert block(torch.randn(2, 2, size, size)).shape == (2, 4, side, side)


def test_conv_has_a_bias_exactly_where_no_normalization_follows():
    assert ConvNormAct(2, 4)[0].bias is None
    assert ConvNormAct(2, 4, norm_layer=None)[0].bias is not None
    assert DeconvNormAct(2, 4)[0].bias is None
    assert DeconvNormAct(2, 4, norm_layer=None)[0].bias is not None


@pytest.mark.parametrize("block", [ConvNormAct, DeconvNormAct])
def test_normalization_and_activation_are_optional(block):
    conv = nn.Conv2d if block is ConvNormAct else nn.ConvTranspose2d
    assert kinds(block(2, 4)) == [conv, nn.BatchNorm2d, nn.ReLU]
    assert kinds(block(2, 4, norm_layer=None)) == [conv, nn.ReLU]
    assert kinds(block(2, 4, activation=None)) == [conv, nn.BatchNorm2d]
    assert kinds(block(2, 4, norm_layer=None, activation=nn.ReLU6)) == [conv, nn.ReLU6]


def test_groups_reach_the_convolution():
    assert ConvNormAct(4, 8, groups=4)[0].weight.shape == (8, 1, 3, 3)
    assert DeconvNormAct(4, 8, groups=4)[0].weight.shape == (4, 2, 4, 4)


@pytest.mark.parametrize("block", [ConvNormAct, ConvDWSepNormAct])
def test_even_kernel_raises(block):
    with pytest.raises(ValueError, match="kernel_size is 4; it must be odd"):
        block(2, 4, 4)


def test_depthwise_separable_parts_and_their_options():
    block = ConvDWSepNormAct(4, 8, 5, 2, dilation=2)
    assert kinds(block) == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 2
    depthwise, pointwise = block[0][0], block[1][0]
    assert (depthwise.groups, depthwise.stride, depthwise.dilation) == (4, (2, 2), (2, 2))
    assert (pointwise.kernel_size, pointwise.stride, pointwise.groups) == ((1, 1), (1, 1), 1)
    assert block(torch.randn(1, 4, 9, 9)).shape == (1, 8, 5, 5)
    plain = ConvDWSepNormAct(4, 8, norm_layer=None, dw_activation=None)
    assert kinds(plain) == [nn.Conv2d, nn.BatchNorm2d, nn.Conv2d, nn.ReLU]
    bare = ConvDWSepNormAct(4, 8, activation=None, dw_norm_layer=None)
    assert kinds(bare) == [nn.Conv2d, nn.ReLU, nn.Conv2d, nn.BatchNorm2d]


@pytest.mark.parametrize(
    ("kernel_size", "stride"), [(2, 2), (3, 2), (4, 2), (5, 2), (4, 4), (3, 1)]
)
def test_deconv_enlarges_by_exactly_the_stride(kernel_size, stride):
    block = DeconvNormAct(2, 4, kernel_size, stride)
    assert block(torch.randn(2, 2, 5, 7)).shape == (2, 4, 5 * stride, 7 * stride)


@pytest.mark.parametrize(("kernel_size", "stride"), [(2, 4), (2, 1)])
def test_deconv_kernel_that_cannot_enlarge_exactly_raises(kernel_size, stride):
    with pytest.raises(ValueError, match=f"kernel_size {kernel_size} with stride {stride} cannot"):
        DeconvNormAct(2, 4, kernel_size, stride)


@pytest.mark.parametrize("block", [ConvNormAct, ConvDWSepNormAct, DeconvNormAct])
def test_blocks_trace(block):
    model, x = block(4, 8).eval(), torch.randn(1, 4, 6, 6)
    assert torch.equal(fx.symbolic_trace(model)(x), model(x))


def test_group_width_sets_the_groups_of_the_first_part():
    block = ConvDWSepNormAct(8, 4, group_width=4)
    assert (block[0][0].groups, block[1][0].groups) == (2, 1)
    with pytest.raises(ValueError, match="group_width is 3; it must divide the 8 input channels"):
        ConvDWSepNormAct(8, 4, group_width=3)
