import pytest
import torch
from torch import nn

from edgeailite.quantization.modules.pact2 import quantizers
from edgeailite.quantization.report import build_report
from edgeailite.quantization.report.findings import MAX_ALIKE
from edgeailite.quantization.wrappers import PTCFxModule, QuantTrainModule
from tests.quantization.helpers import trained
from tests.quantization.zoo import Residual

SHAPE = (3, 8, 8)


def _with_an_outlying_weight(**options):
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = 90.0
    return QuantTrainModule(model, torch.randn(1, *SHAPE), total_epochs=4, **options)


def _chain(length):
    layers = [nn.Conv2d(3, 3, 3, padding=1) for _ in range(length)]
    return trained(nn.Sequential(*layers), [SHAPE])


def test_a_healthy_model_has_no_warning():
    model = trained(Residual(), [SHAPE])
    assert build_report(model, [torch.randn(4, *SHAPE).clamp(-2, 2)]).warnings == []


def test_unseen_ranges_and_outlying_weights():
    warnings = build_report(_with_an_outlying_weight()).warnings
    assert "'0.activation_in' has never seen data" in warnings
    assert any("'0': its largest weight is" in w and "per_channel_q" in w for w in warnings)


def test_per_channel_weights_are_not_warned_of():
    model = _with_an_outlying_weight(per_channel_q="all", constrain_weights=False)
    assert not any("largest weight" in w for w in build_report(model).warnings)


def test_an_activation_whose_range_outliers_set():
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 1)), [SHAPE])
    quantizers(model.module)["0.activation_in"].clips_act.copy_(torch.tensor([-500.0, 500.0]))
    (warning,) = (
        w for w in build_report(model, [torch.randn(8, *SHAPE)]).warnings if "reaches" in w
    )
    assert warning.startswith("'0.activation_in': its range reaches 512, but 99.9 % of the values")
    assert "outliers set the scale; a range rule that leaves some values outside" in warning


def test_a_fixed_range_that_is_hardly_used():
    model = PTCFxModule(nn.Sequential(nn.Conv2d(3, 4, 1)), qconfig_type="WC8SYMP2_AT8SYMP2R4")
    images = 0.01 * torch.randn(8, *SHAPE)
    warnings = build_report(model.calibrate([images]), [images]).warnings
    assert any(
        "most of its fixed range is unused; a preset that finds ranges" in w for w in warnings
    )
    assert not any("never seen" in w for w in warnings)


def test_values_outside_of_the_range():
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 1)), [SHAPE])
    warnings = build_report(model, [20 * torch.randn(8, *SHAPE)]).warnings
    assert any(
        w.startswith("'0.activation_in': ") and "lie outside of its range" in w for w in warnings
    )


def test_the_gravest_of_many_alike_and_how_many_more():
    model = _chain(8)
    images = 100 * torch.randn(4, *SHAPE)
    alike = [w for w in build_report(model, [images]).warnings if "lie outside" in w]
    shares = [float(w.split(": ")[1].split(" %")[0]) for w in alike]
    assert len(alike) == MAX_ALIKE
    assert shares == sorted(shares, reverse=True)
    assert "4 more places like the 5 before" in str(build_report(model, [images]))


def _with_a_large_bias(**options):
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    with torch.no_grad():
        model[0].weight.mul_(0.01)
        model[0].bias.copy_(torch.tensor([0.0, 0.0, 300.0, -300.0]))
    return trained(model, [SHAPE], bias_calibration=False, **options)


def test_biases_that_do_not_fit():
    report = build_report(_with_a_large_bias(constrain_bias="SATURATE"))
    (warning,) = (w for w in report.warnings if "biases" in w)
    assert warning.startswith("'0': 2 of 4 biases (up to 300) do not fit into 16 bits and are cut")
    assert report.layers[0].bias_sqnr < 20


def test_biases_that_fit_because_the_scales_are_coarser():
    report = build_report(_with_a_large_bias())
    (warning,) = (w for w in report.warnings if "biases" in w)
    assert warning.startswith("'0': its weight scale is 2.05e+03 times coarser, so that its biases")
    assert report.layers[0].bias_sqnr > 60


def test_biases_with_room():
    report = build_report(_with_a_large_bias(constrain_bias="NONE"))
    assert not any("biases" in w for w in report.warnings)


@pytest.mark.parametrize("place", [1, 3])
def test_the_first_place_where_the_error_breaks_in(place):
    model = _chain(5)
    path = f"{place}.activation_q"
    quantizer = quantizers(model.module)[path]
    quantizer.clips_act.copy_(quantizer.clips_act * 64)  # six bits are lost
    (warning,) = (
        w for w in build_report(model, [torch.randn(8, *SHAPE).clamp(-2, 2)]).warnings
        if "breaks in" in w
    )  # fmt: skip
    assert warning.startswith(f"'{path}' is the first place where the error breaks in: ")


def test_an_error_that_grows_step_by_step():
    layers = [nn.Conv2d(3, 3, 3, padding=1, bias=False) for _ in range(24)]
    model = trained(nn.Sequential(*layers), [SHAPE], bitwidth_weights=4)
    warnings = build_report(model, [torch.randn(8, *SHAPE).clamp(-2, 2)]).warnings
    (warning,) = (w for w in warnings if "against the float model" in w)
    assert "is the first place below 10 dB" in warning
    assert "the error grew step by step" in warning


def test_a_branch_is_compared_with_its_own_predecessors():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.good, self.bad, self.after = (nn.Conv2d(3, 3, 1) for _ in range(3))

        def forward(self, x):
            bad = self.bad(x)
            return bad, self.after(self.good(x))

    model = trained(Branches(), [SHAPE])
    quantizer = quantizers(model.module)["bad.activation_q"]
    quantizer.clips_act.copy_(quantizer.clips_act * 64)
    warnings = build_report(model, [torch.randn(8, *SHAPE).clamp(-2, 2)]).warnings
    assert [w.split(" ")[0] for w in warnings if "breaks in" in w] == ["'bad.activation_q'"]
