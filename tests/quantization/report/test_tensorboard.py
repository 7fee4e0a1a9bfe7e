import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from edgeailite.quantization.report import add_to_tensorboard, build_report
from tests.quantization.helpers import trained
from tests.quantization.zoo import SharedConvolution


def _events(folder, report, step):
    with SummaryWriter(str(folder)) as writer:
        add_to_tensorboard(report, writer, step)
    return EventAccumulator(str(folder), size_guidance={"histograms": 0}).Reload()


def test_scalars_histograms_and_text(tmp_path):
    model = trained(SharedConvolution(), [(3, 8, 8)])
    report = build_report(model, [torch.randn(2, 3, 8, 8)])
    events = _events(tmp_path, report, 7)
    (point,) = events.Scalars("sqnr_output/conv")
    assert (point.step, point.value) == (7, pytest.approx(report.layers[1].output_sqnr))
    assert events.Scalars("sqnr_output/conv (call 2)")[0].value != point.value
    weights = events.Histograms("weight/conv")[0].histogram_value
    assert weights.num == report.layers[1].num_weights
    assert list(weights.bucket)[-1] >= 0
    entry = report.activations[0]
    assert events.Scalars(f"clipped/{entry.name}")[0].value == pytest.approx(entry.clipped)
    assert events.Histograms(f"activation/{entry.name}")[0].histogram_value.num == 2 * 3 * 8 * 8
    (text,) = events.Tensors("quantization/report/text_summary")
    assert b"conv" in text.tensor_proto.string_val[0]


def test_without_data_there_are_weights_only(tmp_path):
    report = build_report(trained(SharedConvolution(), [(3, 8, 8)]))
    tags = _events(tmp_path, report, 0).Tags()
    assert {t.split("/")[0] for t in tags["scalars"]} == {"sqnr_weight"}
    assert {t.split("/")[0] for t in tags["histograms"]} == {"weight"}
