"""FAKEQ_MODEL: the simulation's numbers from ONNX Runtime."""

import onnx
import onnxruntime
import pytest
import torch

from tests.quantization.helpers import batch, outputs, run_onnx, trained
from tests.quantization.zoo import ZOO


@pytest.mark.parametrize("options", [{}, {"bitwidth_activations": 4}, {"rounding": "half_up"}])
@pytest.mark.parametrize("name", ["residual", "shuffle_unit", "squeeze_and_excite"])
def test_onnx_runtime_gives_the_simulation(name, options, tmp_path):
    case = ZOO[name]
    wrapper, inputs = trained(case.make(), case.shapes, **options), batch(case.shapes, 8)
    path = wrapper.export(
        inputs, tmp_path / "m.onnx", format="FAKEQ_MODEL", dynamic_batch=not options
    )
    with torch.no_grad():
        expected = outputs(wrapper(*inputs))
    session_options = onnxruntime.SessionOptions()
    session_options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(
        str(path), session_options, providers=["CPUExecutionProvider"]
    )
    feeds = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
    optimized = [torch.from_numpy(y) for y in session.run(None, feeds)]
    for result in (run_onnx(path, inputs, "off"), optimized):
        assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))
    types = {t.data_type for t in onnx.load(str(path)).graph.initializer if t.dims}
    assert onnx.TensorProto.INT8 not in types
