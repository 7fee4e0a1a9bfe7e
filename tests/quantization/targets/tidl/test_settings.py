"""TIDL's settings: what they say, and that they lie beside a QDQ file."""

import json

import pytest
import torch

from edgeailite.quantization.targets.tidl.settings import tidl_settings
from tests.quantization.helpers import trained
from tests.quantization.zoo import ZOO

CASE = ZOO["linear"]
EIGHT_BIT = {"tensor_bits": 8, "accuracy_level": 0, "advanced_options:prequantized_model": 1}


@pytest.mark.parametrize(
    ("options", "bits"),
    [
        ({}, 8),
        ({"bitwidth_weights": 4}, 8),
        ({"bitwidth_weights": 16}, 16),
        ({"bitwidth_activations": 16}, 16),
    ],
)
def test_widest_grid_decides(options, bits):
    converted = trained(CASE.make(), CASE.shapes, **options).convert()
    assert tidl_settings(converted.module) == {**EIGHT_BIT, "tensor_bits": bits}


def test_settings_lie_beside_a_qdq_file_only(tmp_path):
    wrapper, x = trained(CASE.make(), CASE.shapes), torch.rand(2, *CASE.shapes[0])
    wrapper.export(x, tmp_path / "int.onnx", format="INT_MODEL")
    wrapper.export(x, tmp_path / "model.v2.onnx")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["int.onnx", "model.v2.onnx", "model.v2.tidl.json"]
    assert json.loads((tmp_path / "model.v2.tidl.json").read_text()) == EIGHT_BIT
