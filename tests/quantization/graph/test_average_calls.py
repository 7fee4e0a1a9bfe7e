import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeailite.quantization.graph.average_calls import (
    average_module,
    global_average,
    unknown_windows,
)
from edgeailite.quantization.graph.calls import traits_of
from edgeailite.quantization.graph.capture import capture
from edgeailite.quantization.graph.model import graph_of
from edgeailite.quantization.graph.window_sums import Mean


class Average(nn.Module):
    def __init__(self, compute):
        super().__init__()
        self.compute = compute

    def forward(self, x):
        return self.compute(x)


def call_of(compute):
    graph = graph_of(capture(Average(compute)))
    return next(node for node in graph.nodes if traits_of(node).averages)


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: F.avg_pool2d(x, x.shape[2:]),
        lambda x: F.avg_pool2d(x, x.size()[-2:], stride=1),
        lambda x: F.avg_pool2d(input=x, kernel_size=(x.shape[2], x.size(dim=-1))),
        lambda x: F.adaptive_avg_pool2d(x, 1),
    ],
)
def test_a_window_of_the_size_of_the_image_is_an_adaptive_one(compute):
    node, x = call_of(compute), torch.randn(2, 3, 5, 7)
    assert unknown_windows(node, None) == ""
    module = average_module(node, None)
    assert isinstance(module, nn.AdaptiveAvgPool2d)
    torch.testing.assert_close(module(x), compute(x))


@pytest.mark.parametrize(
    ("compute", "argument"),
    [
        (lambda x: F.avg_pool2d(x, x.shape[2] // 2), "kernel_size"),
        (lambda x: F.avg_pool2d(x, x.shape[2]), "kernel_size"),
        (lambda x: F.avg_pool2d(x, (x.shape[3], x.shape[2])), "kernel_size"),
        (lambda x: F.avg_pool2d(x, x.shape[2:], padding=1), "kernel_size"),
        (lambda x: F.avg_pool2d(x, x.shape[2:], divisor_override=2), "kernel_size"),
        (lambda x: F.avg_pool2d(x * x, x.shape[2:]), "kernel_size"),
        (lambda x: F.avg_pool2d(x, 2, x.shape[2] // 2), "stride"),
        (lambda x: F.adaptive_avg_pool2d(x, (x.shape[2] // 2, 1)), "output_size"),
        (lambda x: x.mean(x.dim() - 1), "dim"),
    ],
)
def test_other_arguments_from_shapes_are_named(compute, argument):
    found = unknown_windows(call_of(compute), None)
    assert found == f"{argument}=(computed in the model) has no integer form"


@pytest.mark.parametrize(
    ("compute", "dims"),
    [
        (lambda x: x.mean(), "None"),
        (lambda x: x.mean(0), "0"),
        (lambda x: x.mean(()), "()"),
        (lambda x: torch.mean(x, [0, 2]), "[0, 2]"),
    ],
)
def test_averages_over_the_batch_are_named(compute, dims):
    found = unknown_windows(call_of(compute), None)
    assert found == f"mean over dim={dims} includes the batch, which has no fixed size"


@pytest.mark.parametrize(
    ("compute", "dims", "keepdim"),
    [
        (lambda x: x.mean(axis=(2, 3)), (2, 3), False),
        (lambda x: torch.mean(x, -1, keepdims=True), (-1,), True),
        (lambda x: x.mean(1, True), (1,), True),
    ],
)
def test_a_mean_is_a_module(compute, dims, keepdim):
    module = average_module(call_of(compute), None)
    assert isinstance(module, Mean)
    assert (module.dims, module.keepdim) == (dims, keepdim)


@pytest.mark.parametrize(
    ("compute", "keepdim"),
    [
        (lambda x: F.adaptive_avg_pool2d(x, [1, 1]), True),
        (lambda x: x.mean([-1, -2]), False),
        (lambda x: x.mean((2, 3), keepdim=True), True),
        (lambda x: F.adaptive_avg_pool1d(x, 1), None),
        (lambda x: x.mean(2), None),
        (lambda x: F.avg_pool2d(x, 2), None),
    ],
)
def test_an_average_over_images(compute, keepdim):
    assert global_average(call_of(compute), None) is keepdim
