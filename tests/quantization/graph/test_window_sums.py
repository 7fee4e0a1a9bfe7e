import pytest
import torch
from torch import nn

from edgeailite.quantization.graph.window_sums import AdaptiveSum, Mean, Sum, WindowSum

POOLS = {
    "plain": (nn.AvgPool2d(2), (2, 3, 7, 8)),
    "rectangle": (nn.AvgPool2d((3, 1), (2, 1)), (2, 3, 9, 5)),
    "padded": (nn.AvgPool2d(3, 2, 1), (2, 3, 9, 9)),
    "padding_not_counted": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), (2, 3, 9, 9)),
    "ceil": (nn.AvgPool2d(3, 2, ceil_mode=True), (2, 3, 8, 9)),
    "ceil_padded": (nn.AvgPool2d(3, 2, 1, ceil_mode=True), (2, 3, 8, 8)),
    "ceil_not_counted": (nn.AvgPool2d(3, 2, 1, True, False), (2, 3, 8, 8)),
    "divisor": (nn.AvgPool2d(2, divisor_override=3), (2, 3, 8, 8)),
    "1d": (nn.AvgPool1d(4), (2, 3, 17)),
    "1d_padded": (nn.AvgPool1d(3, 1, 1), (2, 3, 10)),
    "3d": (nn.AvgPool3d(2), (2, 3, 4, 6, 4)),
    "adaptive": (nn.AdaptiveAvgPool2d((4, 1)), (2, 3, 8, 6)),
    "adaptive_same": (nn.AdaptiveAvgPool2d((None, 2)), (2, 3, 5, 6)),
    "global": (nn.AdaptiveAvgPool2d(1), (2, 3, 5, 6)),
    "adaptive_1d": (nn.AdaptiveAvgPool1d(3), (2, 3, 12)),
    "mean": (Mean((2, 3), True), (2, 3, 5, 6)),
    "mean_of_channels": (Mean((-3,), False), (2, 3, 5, 6)),
    "sum": (Sum((2, 3), True), (2, 3, 5, 6)),
    "sum_of_all": (Sum((), False), (2, 3, 5, 6)),
}


UNEQUAL = {
    "adaptive_unequal": (nn.AdaptiveAvgPool2d((5, 3)), (2, 3, 8, 7)),
    "adaptive_overlapping": (nn.AdaptiveAvgPool3d((2, None, 9)), (2, 3, 5, 6, 4)),
}


@pytest.mark.parametrize("name", [*POOLS, *UNEQUAL])
def test_sums_over_areas_are_the_average(name):
    average, shape = (POOLS | UNEQUAL)[name]
    x = torch.randint(-128, 128, shape).float()
    sums = (AdaptiveSum if "adaptive" in name else WindowSum)(average)
    assert torch.equal(sums(x), sums(x).round())
    expected = average(x).double()
    torch.testing.assert_close(sums(x).double() / sums.areas(x.shape), expected, rtol=0, atol=1e-5)


def test_equal_areas_are_one_number():
    assert WindowSum(nn.AvgPool2d(3)).areas((1, 1, 9, 9)).item() == 9
    assert WindowSum(nn.AvgPool2d(3, 1, 1, False, False)).areas((1, 1, 3, 3)).tolist() == [
        [[[4, 6, 4], [6, 9, 6], [4, 6, 4]]]
    ]


def test_adaptive_windows_of_different_sizes_are_refused():
    sums = WindowSum(nn.AdaptiveAvgPool2d((3, 1)))
    with pytest.raises(ValueError, match=r"from \(8, 4\) to \(3, 1\) has windows of different"):
        sums(torch.zeros(1, 2, 8, 4))


@pytest.mark.parametrize("dims", [(0,), (-4, 1)])
def test_averages_over_the_batch_are_refused(dims):
    sums = WindowSum(Mean(dims, False))
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 5\) averages over the batch"):
        sums.areas((2, 3, 4, 5))


@pytest.mark.parametrize(
    ("pool", "is_plain"),
    [
        (nn.AvgPool2d(3, 2, 1), True),
        (nn.AvgPool2d(2, ceil_mode=True), True),
        (nn.AvgPool2d(3, 2, ceil_mode=True), False),
        (nn.AvgPool2d(2, divisor_override=3), False),
        (nn.AdaptiveAvgPool2d(2), True),
    ],
)
def test_windows_that_end_inside_of_the_image(pool, is_plain):
    assert WindowSum(pool).is_plain((2, 3, 8, 8)) == is_plain
