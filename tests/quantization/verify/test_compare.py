"""verify finds differences, places them, and does not disturb training."""

import onnx
import pytest
import torch
from torch import nn

from edgeailite.quantization import TINPUTinyMLPTQFxModule
from edgeailite.quantization.verify import compare as module
from edgeailite.quantization.wrappers import QuantCalibrateModule
from tests.quantization.targets.c.compiled import needs_compiler

SHAPE = (4, 3, 8, 8)


def wrapped(seed: int) -> QuantCalibrateModule:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    wrapper = QuantCalibrateModule(model, torch.rand(SHAPE)).train()
    wrapper(torch.randn(SHAPE))
    return wrapper.eval()


def test_equal_models_are_exact(tmp_path):
    wrapper = wrapped(0)
    path = wrapper.export(torch.rand(SHAPE), tmp_path / "m.onnx")
    result = module.verify(wrapper, [torch.randn(SHAPE), torch.randn(2, *SHAPE[1:])], path)
    assert (result.num_inputs, result.num_values) == (6, 6 * 4 * 36)
    assert result.mismatches == dict.fromkeys(result.mismatches, 0)
    assert len(result.mismatches) == 3
    assert result.exact
    assert "0 differ" in str(result)


@needs_compiler
def test_c_files_are_compared_too():
    wrapper, x = wrapped(0), torch.randn(SHAPE)
    for model in (wrapper, wrapper.convert()):
        result = module.verify(model, [x, x[:1]], runtimes=["c"])
        assert result.mismatches[module.INTEGER_C] == 0
        assert result.exact
    with pytest.raises(ValueError, match=r"runtimes holds \['tvm'\]; allowed: c"):
        module.verify(wrapper, [x], runtimes=["tvm"])


@needs_compiler
def test_c_files_of_the_npu_are_not_compared():
    x = torch.randn(4, 8)
    wrapper = TINPUTinyMLPTQFxModule(nn.Sequential(nn.Linear(8, 4)), verbose=False).calibrate([x])
    with pytest.raises(ValueError, match="Leave 'c' out of runtimes"):
        module.verify(wrapper, [x], runtimes=["c"])


def test_file_of_another_model_is_found_out(tmp_path):
    path = wrapped(1).export(torch.rand(SHAPE), tmp_path / "m.onnx")
    result = module.verify(wrapped(0), [torch.randn(SHAPE)], path)
    assert not result.exact
    assert result.mismatches[module.INTEGER_ORT_PLAIN] > 0


def test_first_difference_names_the_quantizer():
    wrapper = wrapped(0)
    converted = wrapper.convert()
    converted.module.get_submodule("2").bias += 1000
    x = (torch.randn(SHAPE),)
    assert module.first_difference(wrapper.module, converted.module, x) == "2.activation_q"
    assert module.first_difference(wrapper.module, wrapper.convert().module, x) is None


def test_training_goes_on_in_the_same_epoch():
    wrapper = wrapped(0).train()
    epoch = wrapper.epoch
    module.verify(wrapper, [torch.randn(SHAPE)])
    assert (wrapper.training, wrapper.epoch) == (True, epoch)


def test_nothing_to_compare_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no batches"):
        module.verify(wrapped(0), [])
    with pytest.raises(FileNotFoundError, match="no ONNX file"):
        module.verify(wrapped(0), [torch.randn(SHAPE)], tmp_path / "none.onnx")


def altered(path, name, change):
    """The file with one initializer changed in place."""
    proto = onnx.load(path)
    (tensor,) = [t for t in proto.graph.initializer if t.name == name]
    values = onnx.numpy_helper.to_array(tensor).copy()
    tensor.CopyFrom(onnx.numpy_helper.from_array(change(values), name))
    onnx.save(proto, path)


def test_an_altered_bias_is_found_with_its_place_and_steps(tmp_path):
    wrapper = wrapped(0)
    path = wrapper.export(torch.rand(SHAPE), tmp_path / "m.onnx")
    grid = wrapper.convert().module.get_submodule("2").output.grid
    step_of_bias = float(wrapper.convert().module.get_submodule("2").weight_scale.max())
    step_of_bias *= wrapper.convert().module.get_submodule("2").input.grid.scale
    two_steps = round(2 * grid.scale / step_of_bias)
    altered(path, "2.bias", lambda b: b + two_steps)
    result = module.verify(wrapper, [torch.randn(SHAPE)], path)
    assert result.mismatches[module.EVALUATION_INTEGER] == 0
    assert result.first_onnx_difference == "2.activation_q"
    counts = result.steps[module.INTEGER_ORT_PLAIN]
    assert counts[2] > 0.9 * result.mismatches[module.INTEGER_ORT_PLAIN]
    assert result.max_steps == 2
    assert "by two" in str(result)


def test_an_altered_weight_of_the_first_layer_is_placed_there(tmp_path):
    wrapper = wrapped(0)
    path = wrapper.export(torch.rand(SHAPE), tmp_path / "m.onnx")
    altered(path, "0.weight", lambda w: -w)
    result = module.verify(wrapper, [torch.randn(SHAPE)], path)
    assert result.first_onnx_difference == "1"


def test_converted_model_is_compared_with_its_file_alone(tmp_path):
    wrapper = wrapped(0)
    path = wrapper.export(torch.rand(SHAPE), tmp_path / "m.onnx")
    result = module.verify(wrapper.convert(), [torch.randn(SHAPE)], path)
    assert result.exact
    assert module.EVALUATION_INTEGER not in result.mismatches
    with pytest.raises(ValueError, match="nothing to compare: give onnx_path"):
        module.verify(wrapper.convert(), [torch.randn(SHAPE)])
