import copy

import pytest
import torch
from torch import nn

from edgeailite.quantization import PTCFxModule, QuantCalibrateModule, TINPUTinyMLPTQFxModule
from edgeailite.quantization.methods import least_squares
from edgeailite.quantization.methods.activation_ranges import search_activation_ranges
from edgeailite.quantization.methods.bias_correction import correct_biases
from edgeailite.quantization.methods.least_squares import fit_layers
from edgeailite.quantization.modules.layer_calls import disable_quantization, layer_calls
from edgeailite.quantization.verify.compare import verify
from tests.quantization.helpers import randomize_batch_norms

X = torch.zeros(1, 3, 16, 16)


def _network():
    torch.manual_seed(0)
    return randomize_batch_norms(
        nn.Sequential(
            *(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU6()),
            *(nn.Conv2d(12, 12, 3, groups=12, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
            *(nn.ConvTranspose2d(12, 8, 2, stride=2), nn.ReLU(), nn.AvgPool2d(2)),
            *(nn.Conv2d(8, 16, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            nn.Linear(16, 5),
        )
    ).eval()


def _batches(seed, count=2):
    """Smooth images: neighbours are alike, as in photographs."""
    generator = torch.Generator().manual_seed(seed)
    small = (torch.randn(16, 3, 4, 4, generator=generator) for _ in range(count))
    return [(nn.functional.interpolate(x, size=16, mode="bilinear"),) for x in small]


def _wrapper(preset):
    if preset == "pact2":
        wrapper = QuantCalibrateModule(_network(), dummy_input=X)
    elif preset == "tinpu":
        wrapper = TINPUTinyMLPTQFxModule(_network(), 1, example_inputs=X, verbose=False)
    else:
        wrapper = PTCFxModule(_network(), qconfig_type=preset, example_inputs=X, verbose=False)
    wrapper.eval()
    search_activation_ranges(wrapper.module, _batches(1))
    return wrapper


def _float_error(model, batches):
    network = _network()
    with torch.no_grad():
        return sum(float((model(*b) - network(*b)).square().sum()) for b in batches)


@pytest.mark.parametrize("preset", ["WC4_AT8", "WT8SYMP2_AT8SYMP2", "WC8_AT8", "pact2"])
def test_images_that_were_not_seen_come_nearer_to_float(preset):
    """Than with ranges alone, and than with biases; the output's own grid is the rest."""
    ranges, corrected, fitted = (_wrapper(preset).module for _ in range(3))
    correct_biases(corrected, _batches(1))
    assert fit_layers(fitted, _batches(1)) == [call.path for call in layer_calls(fitted)]
    found = _float_error(fitted, _batches(2))
    assert found < 0.75 * _float_error(ranges, _batches(2))
    assert found < _float_error(corrected, _batches(2))


@pytest.mark.parametrize("preset", ["WC4_AT8", "WT8SYMP2_AT8SYMP2"])
def test_weights_are_on_a_grid_that_is_no_coarser(preset):
    model = _wrapper(preset).module
    scales = {call.path: call.folded().scale for call in layer_calls(model)}
    fit_layers(model, _batches(1))
    for call in layer_calls(model):
        weight, _, scale = call.folded()
        assert (scale <= scales[call.path] * (1 + 1e-5)).all()
        if call.layer.is_transposed:
            continue
        steps = weight / call.layer.channels(scale, weight)
        assert (steps - steps.round()).abs().max() < 1e-3


@pytest.mark.filterwarnings("ignore:.*the NPU computes.*:UserWarning")
@pytest.mark.parametrize("preset", ["WC8_AT8", "WT8SYMP2_AT8SYMP2", "pact2", "tinpu"])
def test_result_is_exact_as_onnx_and_in_a_checkpoint(preset, tmp_path):
    wrapper, twin = _wrapper(preset), _wrapper(preset)
    fit_layers(wrapper.module, _batches(1))
    wrapper.export(X, tmp_path / "model.onnx")
    comparison = verify(wrapper, [b[0] for b in _batches(2)], tmp_path / "model.onnx")
    assert sum(comparison.mismatches.values()) == 0
    twin.module.load_state_dict(wrapper.module.state_dict())
    with torch.no_grad():
        assert torch.equal(twin(*_batches(2)[0]), wrapper(*_batches(2)[0]))


def test_a_reference_is_what_layers_are_fitted_to():
    """Biases that another method moved make no difference, if the float model is given."""
    model = _wrapper("WC4_AT8").module
    moved = copy.deepcopy(model)
    reference = copy.deepcopy(model)
    disable_quantization(reference)
    correct_biases(moved, _batches(1), reference)
    for fitted in (model, moved):
        fit_layers(fitted, _batches(1), reference)
    assert _float_error(moved, _batches(2)) == pytest.approx(
        _float_error(model, _batches(2)), rel=0.2
    )


def test_memory_bounds_the_images(monkeypatch):
    seen = []
    monkeypatch.setattr(
        least_squares, "spread", lambda batches, count: seen.append(count) or batches
    )
    model = _wrapper("WC8_AT8").module
    fit_layers(model, _batches(1))
    monkeypatch.setattr(least_squares, "BYTES", 1 << 19)
    fit_layers(model, _batches(1))
    assert seen[1] == least_squares.IMAGES
    # Behind the transposed layer: 8 channels of 28 x 28, before and on the grid, in two models.
    assert seen[3] == (1 << 19) // (2 * 4 * 2 * 8 * 28 * 28)
