"""Converted models, and the keywords that every wrapper and converted model takes."""

import inspect

import pytest
import torch
from torch import nn

from edgeailite import quantization
from edgeailite.quantization import (
    ConvertedModule,
    PTCFxModule,
    QATFxModule,
    QuantCalibrateModule,
    QuantModule,
    QuantTestModule,
    QuantTrainModule,
    TINPUTinyMLPTQFxModule,
    TinyMLConvertedModule,
)
from edgeailite.quantization.modules.layer_calls import float_arithmetic
from edgeailite.quantization.report import build_report
from edgeailite.quantization.verify import verify
from tests.quantization.helpers import quiet_onnx_export

WRAPPERS = [
    value
    for value in (getattr(quantization, name) for name in quantization.__all__)
    if isinstance(value, type) and issubclass(value, QuantModule)
]


def keywords(function) -> dict[str, object]:
    """Names and defaults; fails for a signature that swallows keywords."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    assert not [p for p in parameters if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    return {p.name: p.default for p in parameters}


@pytest.mark.parametrize("method", ["export", "convert", "export_c", "calibrate"])
@pytest.mark.parametrize("wrapper_type", WRAPPERS)
def test_every_wrapper_takes_the_keywords_of_all(wrapper_type, method):
    common = keywords(getattr(QuantModule, method))
    assert common.items() <= keywords(getattr(wrapper_type, method)).items()


@pytest.mark.parametrize("converted_type", [ConvertedModule, TinyMLConvertedModule])
def test_a_converted_model_takes_the_keywords_of_its_wrapper(converted_type):
    assert keywords(QuantModule.export).items() <= keywords(converted_type.export).items()
    assert keywords(QuantModule.export_c) == keywords(converted_type.export_c)


@pytest.fixture
def wrapper():
    x = torch.randn(8, 16)
    model = nn.Sequential(nn.Linear(16, 4), nn.ReLU())
    return QuantCalibrateModule(model, x[:1]).calibrate([x])


def test_the_format_of_the_conversion_is_the_default(wrapper, tmp_path):
    assert wrapper.convert().format == "QDQ_MODEL"
    assert wrapper.convert(format="INT_MODEL").format == "INT_MODEL"
    with pytest.raises(ValueError, match="'CLIP_MODEL', which needs the wrapper"):
        wrapper.convert("CLIP_MODEL")
    with pytest.raises(ValueError, match="format is 'TINPU_INT_MODEL'; allowed: 'QDQ_MODEL'"):
        wrapper.convert("TINPU_INT_MODEL")


def test_strict_without_hardware_rules_warns(wrapper, tmp_path):
    for exporter in (wrapper, wrapper.convert()):
        with pytest.warns(UserWarning, match="strict=True has no effect"):
            exporter.export(torch.randn(1, 16), tmp_path / "m.onnx", strict=True)


def test_c_is_written_by_the_wrapper_as_by_the_converted_model(wrapper, tmp_path):
    x = torch.randn(8, 16)
    files = [path.read_bytes() for path in wrapper.export_c(x, tmp_path / "c")]
    assert files == [path.read_bytes() for path in wrapper.convert().export_c(x, tmp_path / "d")]
    npu = TINPUTinyMLPTQFxModule(nn.Sequential(nn.Linear(16, 4), nn.ReLU())).calibrate([x])
    files = [path.read_bytes() for path in npu.export_c(x, tmp_path / "a")]
    assert files == [path.read_bytes() for path in npu.convert().export_c(x, tmp_path / "b")]


def test_simplify_is_taken_by_every_wrapper(tmp_path):
    x = torch.randn(8, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    wrapper = PTCFxModule(model).calibrate([x])
    fused = wrapper.export(x, tmp_path / "f.onnx", format="FLOAT_MODEL", simplify=True)
    plain = wrapper.export(x, tmp_path / "p.onnx", format="FLOAT_MODEL")
    assert b"BatchNormalization" in plain.read_bytes()
    assert b"BatchNormalization" not in fused.read_bytes()


# ---- ranges that have never seen data ------------------------------------------------------------

UNSEEN = (
    r"range at '0\.activation_in' has never seen data.*calibrate\(loader\).*quantized checkpoint"
)


def network():
    return nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 2), nn.Hardtanh())


@pytest.fixture
def uncalibrated():
    """Each kind of wrapper, and a model that a float checkpoint was loaded into."""
    x = torch.randn(1, 16)
    test = QuantTestModule(network(), x)
    test.module.load_state_dict(network().state_dict())
    return [
        QuantTrainModule(network(), x, total_epochs=2),
        QuantCalibrateModule(network(), x),
        QATFxModule(network(), total_epochs=2),
        TINPUTinyMLPTQFxModule(network(), verbose=False),
        test,
    ]


def test_a_model_that_never_saw_data_is_not_converted(uncalibrated, tmp_path):
    x = torch.randn(1, 16)
    for wrapper in uncalibrated:
        ways = [wrapper.convert, lambda w=wrapper: verify(w, [x])]
        ways.append(lambda w=wrapper: w.export_c(x, tmp_path))
        for name in set(wrapper.formats) - {"FLOAT_MODEL"}:
            ways.append(lambda w=wrapper, n=name: w.export(x, tmp_path / "m.onnx", format=n))
        for way in ways:
            with pytest.raises(ValueError, match=UNSEEN):
                way()
    assert not list(tmp_path.iterdir())


def test_the_exporter_of_torch_names_the_range_too(uncalibrated, tmp_path):
    with pytest.raises(Exception, match=UNSEEN):
        quiet_onnx_export(uncalibrated[0].module.eval(), (torch.randn(1, 16),), tmp_path / "m.onnx")


def test_the_report_says_that_there_is_no_integer_graph(uncalibrated):
    with float_arithmetic(uncalibrated[0].module):
        report = build_report(uncalibrated[0], [torch.randn(4, 16)])
    assert any("never seen data, so there are no integers" in text for text in report.warnings)


def test_float_files_and_fixed_ranges_need_no_data(uncalibrated, tmp_path):
    x = torch.randn(1, 16)
    uncalibrated[0].export(x, tmp_path / "m.onnx", format="FLOAT_MODEL")
    fixed = PTCFxModule(network(), qconfig_type="WC8SYMP2_AT8SYMP2R4")
    assert torch.equal(fixed.convert()(x), fixed.eval()(x))
    disabled = PTCFxModule(network(), qconfig_type="DISABLED")
    assert torch.equal(disabled.convert()(x), disabled.eval()(x))


def test_a_checkpoint_brings_the_ranges(wrapper):
    fresh = QuantTestModule(nn.Sequential(nn.Linear(16, 4), nn.ReLU()), torch.randn(1, 16))
    fresh.module.load_state_dict(wrapper.module.state_dict())
    x = torch.randn(8, 16)
    assert torch.equal(fresh.convert()(x), wrapper(x))
