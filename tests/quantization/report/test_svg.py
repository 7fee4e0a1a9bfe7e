import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeailite.quantization.report import Histogram, Report, build_report
from edgeailite.quantization.report.svg import HISTOGRAM_HEIGHT, depth_chart, histogram_shape
from tests.quantization.helpers import trained
from tests.quantization.zoo import Residual


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=64).filter(any))
def test_bars_stay_inside_and_every_count_shows(counts):
    shape = histogram_shape(Histogram(0.0, 1.0, counts), (0.0, 1.0))
    tops = [int(v) for v in re.findall(r"V(\d+)h1", shape.path)]
    assert len(tops) == shape.width == len(counts)
    assert all(0 <= top <= HISTOGRAM_HEIGHT for top in tops)
    assert [top == HISTOGRAM_HEIGHT for top in tops] == [count == 0 for count in counts]
    assert tops[counts.index(max(counts))] == 0


def test_the_grid_is_where_its_range_is():
    shape = histogram_shape(Histogram(-2.0, 2.0, [1] * 8), (-1.0, 0.5))
    assert (shape.grid_start, shape.grid_width) == (2.0, 3.0)


def test_points_are_in_the_order_of_the_graph_and_higher_is_better():
    model = trained(Residual(), [(3, 8, 8)])
    report = build_report(model, [torch.randn(4, 3, 8, 8)])
    report.layers[0].weight_sqnr = math.inf
    chart = depth_chart(report)
    assert len(chart.values) == len(report.layers) + len(report.activations)
    assert [p.x for p in chart.values] == sorted(p.x for p in chart.values)
    assert all(0 <= p.y <= chart.height for p in (*chart.values, *chart.weights))
    first, second = chart.weights[:2]
    assert first.words == "conv1: exact"
    assert first.y < second.y
    assert chart.line.count(",") == len(chart.values)


@pytest.mark.parametrize("value", [-1000.0, 1000.0])
def test_what_the_axis_cannot_show_stands_at_its_end(value):
    report = build_report(trained(Residual(), [(3, 8, 8)]))
    report.layers[0].weight_sqnr = value
    chart = depth_chart(report)
    end = chart.ticks[0] if value < 0 else chart.ticks[-1]
    assert chart.weights[0].y == end[0]


def test_a_report_without_layers_has_an_axis():
    chart = depth_chart(Report())
    assert [db for _, db in chart.ticks] == [0, 10, 20, 30, 40]
    assert chart.line == ""
