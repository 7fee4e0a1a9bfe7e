import json
import math

import torch

from edgeailite.quantization.report import FloatEntry, Report, build_report
from tests.quantization.helpers import trained
from tests.quantization.zoo import Residual


def _strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_text_and_dictionary_hold_the_same():
    model = trained(Residual(), [(3, 8, 8)])
    report = build_report(model, [torch.randn(2, 3, 8, 8)])
    text = str(report)
    data = _strict(json.dumps(report.to_dict()))
    assert data["num_inputs"] == 2
    for entry in data["layers"] + data["activations"]:
        assert entry["path"] in text
    assert f"{report.layers[0].output_sqnr:6.1f}" in text
    assert len(data["layers"][0]["weight_histogram"]["counts"]) == 64
    assert data["activations"][0]["histogram"]["low"] <= data["activations"][0]["limits"][0]


def test_no_error_at_all_is_written_as_inf():
    report = build_report(trained(Residual(), [(3, 8, 8)]))
    report.layers[0].weight_sqnr = math.inf
    data = _strict(json.dumps(report.to_dict()))
    assert data["layers"][0]["weight_sqnr"] == "inf"
    assert data["layers"][0]["output_sqnr"] is None
    assert float(data["layers"][0]["weight_sqnr"]) == math.inf


def test_floats_and_warnings_are_part_of_the_text():
    report = Report(floats={"a.b": FloatEntry("Sigmoid", "because")}, warnings=["look here"])
    lines = str(report).splitlines()
    assert "float: a.b: Sigmoid: because" in lines
    assert "warning: look here" in lines
    assert report.to_dict()["floats"] == {"a.b": {"operation": "Sigmoid", "reason": "because"}}
