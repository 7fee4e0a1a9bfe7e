"""CLIP_MODEL: float convolutions and clips, nothing else."""

import onnx
import pytest
import torch

from edgeailite.quantization.arithmetic.spec import QuantSpec
from edgeailite.quantization.export.clip import clip_model, clip_range
from edgeailite.quantization.modules.activation import FakeQuantize
from tests.quantization.helpers import batch, run_onnx, trained
from tests.quantization.zoo import ZOO


def test_file_equals_the_clip_model(tmp_path):
    case = ZOO["residual"]
    wrapper, inputs = trained(case.make(), case.shapes), batch(case.shapes, 2)
    path = wrapper.export(inputs, tmp_path / "m.onnx", format="CLIP_MODEL")
    assert {n.op_type for n in onnx.load(str(path)).graph.node} <= {
        "Conv", "Clip", "Add", "ReduceMean", "Reshape", "Gemm"
    }  # fmt: skip
    plain = clip_model(wrapper.module)
    torch.testing.assert_close(run_onnx(path, inputs)[0], plain(*inputs))


@pytest.mark.parametrize(
    ("spec", "bounds", "values", "expected"),
    [
        (QuantSpec(signed=False), None, [0.0, 3.5], (0.0, 4.0)),
        (QuantSpec(signed=True), None, [-1.5, 1.0], (-2.0, 2.0)),
        (QuantSpec(signed=False), (0.0, 6.0), [0.0, 7.0], (0.0, 6.0)),
    ],
)
def test_range_is_a_power_of_two_unless_an_activation_cuts_it(spec, bounds, values, expected):
    quantizer = FakeQuantize(spec, bounds)
    quantizer(torch.tensor(values))
    assert clip_range(quantizer) == expected
