"""verify finds differences, places them, and does not disturb training."""

import pytest
import torch
from torch import nn

from edgeailite.quantization import verify as module
from edgeailite.quantization.wrappers import QuantCalibrateModule

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
