import copy
import pickle

import onnx
import pytest
import torch
from torch import nn

from edgeailite.quantization import (
    ExportFormat,
    GenericTinyMLPTQFxModule,
    GenericTinyMLQATFxModule,
    QConfig,
    TINPUTinyMLPTQFxModule,
    TINPUTinyMLQATFxModule,
    TinyMLQConfigType,
    TinyMLQuantFxBaseModule,
)
from edgeailite.quantization.modules.layer import QuantLayer
from edgeailite.quantization.modules.pact2 import quantizers
from edgeailite.quantization.report import build_report
from tests.quantization.helpers import run_onnx
from tests.quantization.tinyml_networks import train_a_little, trained

pytestmark = pytest.mark.filterwarnings("ignore:.*the NPU computes.*:UserWarning")
QAT = [GenericTinyMLQATFxModule, TINPUTinyMLQATFxModule]
PTQ = [GenericTinyMLPTQFxModule, TINPUTinyMLPTQFxModule]


def small():
    return nn.Sequential(
        nn.BatchNorm2d(1), nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Flatten(), nn.Linear(144, 5),
    )  # fmt: skip


def layers(wrapper):
    return {p: m for p, m in wrapper.module.named_modules() if isinstance(m, QuantLayer)}


# ---- arguments -----------------------------------------------------------------------------------


def test_arguments_are_taken_in_both_documented_orders():
    x = torch.randn(1, 1, 8, 8)
    bits = {"weight": {"bitwidth": 4}}
    early = TinyMLQuantFxBaseModule(small(), bits, x, True, "qnnpack", 6, verbose=False)
    late = TinyMLQuantFxBaseModule(small(), 6, bits, x, True, verbose=False)
    named = TINPUTinyMLQATFxModule(small(), total_epochs=6, qconfig_type=bits, verbose=False)
    for wrapper in (early, late, named):
        assert wrapper.progress.schedule.batch_norm_epoch == 2
        assert {m.weight_quantizer.spec.bit_width for m in layers(wrapper).values()} == {4}


def test_too_many_positional_arguments_are_named():
    with pytest.raises(TypeError, match=r"7 positional arguments .* Name the others"):
        TinyMLQuantFxBaseModule(small(), None, None, True, "qnnpack", 6, 1)


def test_training_needs_its_epochs_and_calibration_does_not():
    with pytest.raises(ValueError, match="total_epochs is 0"):
        TINPUTinyMLQATFxModule(small())
    assert TINPUTinyMLPTQFxModule(small()).trains is False


@pytest.mark.parametrize("wrapper_type", QAT + PTQ)
def test_a_wrong_example_is_found_at_once(wrapper_type):
    with pytest.raises(ValueError, match=r"shape \(1, 2, 8, 8\) does not pass through Sequential"):
        wrapper_type(small(), total_epochs=2, example_inputs=torch.randn(1, 2, 8, 8))


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="backend is 'npu'"):
        TINPUTinyMLQATFxModule(small(), total_epochs=2, backend="npu")


@pytest.mark.parametrize("wrapper_type", QAT)
def test_without_preparation_everything_stays_in_float(wrapper_type):
    wrapper = wrapper_type(small(), total_epochs=2, prepare_qdq=False)
    assert not layers(wrapper)
    assert not quantizers(wrapper.module)
    with pytest.raises(ValueError, match=r"nothing is quantized .*prepare_qdq"):
        wrapper.convert()


def test_observers_learn_to_the_end_and_batch_norm_to_the_middle():
    schedule = TINPUTinyMLQATFxModule(small(), total_epochs=8, verbose=False).progress.schedule
    assert (schedule.batch_norm_epoch, schedule.range_epoch) == (3, None)
    wrapper = TINPUTinyMLQATFxModule(
        small(), total_epochs=8, num_batch_norm_update_epochs=False, num_observer_update_epochs=2
    )
    schedule = wrapper.progress.schedule
    assert (schedule.batch_norm_epoch, schedule.range_epoch) == (None, 2)


def test_a_quiet_wrapper_prints_nothing(capsys):
    for verbose in (False, True):
        wrapper = TINPUTinyMLQATFxModule(small(), total_epochs=2, verbose=verbose)
        train_a_little(wrapper, (1, 8, 8), 2)
        assert ("frozen" in capsys.readouterr().out) is verbose


@pytest.mark.parametrize("given", ["fc", ["qdq", "x"]])
def test_unknown_float_ops_are_refused(given):
    with pytest.raises(ValueError, match=r"float_ops is .* allowed: False, True, or a list of"):
        TINPUTinyMLQATFxModule(small(), total_epochs=2, float_ops=given)


def test_a_float_offset_is_more_accurate():
    torch.manual_seed(0)
    network = small().eval()
    nn.init.uniform_(network[5].bias, -1, 1)
    x, outputs = torch.randn(256, 1, 8, 8), {}
    expected = network(x)
    for float_ops in (False, ["fb"]):
        wrapper = TINPUTinyMLPTQFxModule(
            copy.deepcopy(network), qconfig_type={"weight": {"bitwidth": 2}}, float_ops=float_ops
        ).calibrate([x])
        converted = wrapper.convert(output_int=False)
        outputs[str(float_ops)] = (converted(x) - expected).square().mean()
        offset = converted.module.get_submodule("5").output.offset
        assert bool((offset == offset.round()).all()) is (float_ops is False)
    assert outputs["['fb']"] <= 1.05 * outputs["False"]


def test_bias_correction_leaves_the_rounding_alone():
    torch.manual_seed(0)
    x, network = torch.randn(256, 1, 8, 8), small().eval()
    expected, errors = network(x).detach(), []
    for factor in (0.0, 1.0):
        given = {"weight": {"bitwidth": 4}}
        wrapper = TINPUTinyMLPTQFxModule(
            copy.deepcopy(network), given, bias_calibration_factor=factor
        )
        wrapper.calibrate([x] * 4)
        with torch.no_grad():
            errors.append((wrapper(x) - expected).mean(0).abs().max() / wrapper_step(wrapper))
    assert errors[1] < 0.2 < errors[0]  # in steps of the output: half a one would be 0.5


def wrapper_step(wrapper):
    return wrapper.module.get_submodule("5.activation_q").qparams().scale


def test_the_report_compares_values_without_the_half_step():
    torch.manual_seed(0)
    given = {"weight": {"bitwidth": 4}}
    wrapper = TINPUTinyMLPTQFxModule(small().eval(), given).calibrate([torch.randn(64, 1, 8, 8)])
    report = build_report(wrapper, [torch.randn(64, 1, 8, 8)])
    grids = {entry.path: entry.grid_sqnr for entry in report.activations}
    assert min(grids.values()) > 30  # of 8 bits; half a step off would be below 6 dB less
    assert report.memory.flash > 0
    assert report.floats == {}


def test_outputs_are_real_where_quantization_at_the_ends_is_float():
    wrapper, x = trained("input_norm", TINPUTinyMLQATFxModule, float_ops=["qdq"])
    with torch.no_grad():
        assert torch.equal(wrapper.convert()(x), wrapper(x))
    wrapper, x = trained("input_norm", TINPUTinyMLQATFxModule, output_int=False)
    with torch.no_grad():
        assert torch.equal(wrapper.convert()(x), wrapper(x))


def test_a_normalisation_in_float_has_no_rounded_multiplier():
    network = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).eval()
    network[0].weight.data = torch.tensor([0.1234567, 1.0, -0.7654321])
    for float_ops, tolerance in ((False, 2.0**-12), (["qdq"], 1e-7)):
        wrapper = TINPUTinyMLPTQFxModule(copy.deepcopy(network), float_ops=float_ops)
        wrapper.calibrate([torch.randn(64, 3)])
        factors = next(m for m in wrapper.convert().modules() if hasattr(m, "factor")).factor
        scale = wrapper.module.get_submodule("0.activation_q").qparams().scale
        gain = network[0].weight.detach() / (1 + network[0].eps) ** 0.5
        error = float((factors * scale / gain - 1).abs().max())
        assert error < tolerance
        assert (error > 1e-6) is (float_ops is False)


# ---- life ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper_type", QAT + PTQ)
def test_a_wrapper_keeps_float_keys_copies_and_pickles(wrapper_type):
    network = small()
    keys = set(network.state_dict())
    wrapper = train_a_little(wrapper_type(network, total_epochs=2, verbose=False), (1, 8, 8), 2)
    assert keys <= set(wrapper.module.state_dict())
    wrapper.module.load_state_dict(small().state_dict(), strict=True)
    x = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        expected = wrapper(x)
        assert torch.equal(copy.deepcopy(wrapper)(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(wrapper))(x), expected)


def test_a_copy_shares_scales_within_itself():
    wrapper, x = trained("residual_relu_pool", TINPUTinyMLQATFxModule)
    twin = copy.deepcopy(wrapper)
    for quantizer in quantizers(twin.module).values():
        quantizer.clips_act.mul_(64)
    with torch.no_grad():
        before = wrapper(x)
        wrapper.convert()
        assert torch.equal(wrapper(x), before)
    twin.convert()  # the scales of its adds agree


@pytest.mark.parametrize("wrapper_type", PTQ)
def test_a_backward_pass_is_refused_after_calibration(wrapper_type):
    wrapper = wrapper_type(small(), verbose=False).train()
    output = wrapper(torch.randn(4, 1, 8, 8))
    with pytest.raises(RuntimeError, match="only calibrates: post-training quantization has no"):
        output.sum().backward()


@pytest.mark.parametrize("wrapper_type", PTQ)
def test_calibration_in_the_users_loop_and_by_method_agree(wrapper_type):
    torch.manual_seed(0)
    network, data = small(), torch.randn(3, 8, 1, 8, 8)
    by_loop = wrapper_type(copy.deepcopy(network), verbose=False).train()
    for batch in data:
        by_loop(batch)
    by_method = wrapper_type(copy.deepcopy(network), verbose=False).calibrate(data)
    x = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(by_loop.eval()(x), by_method(x))


def test_ternary_weights_begin_soft_and_end_hard():
    wrapper = TINPUTinyMLQATFxModule(
        small(), qconfig_type={"weight": {"bitwidth": 2}}, total_epochs=4, verbose=False
    )
    seen = []
    for _ in range(4):
        wrapper.train()
        seen.append({layer.weight_quantizer.softness for layer in layers(wrapper).values()})
        wrapper(torch.randn(4, 1, 8, 8))
    assert seen == [{1.0}, {0.5}, {0.0}, {0.0}]
    layer = layers(wrapper)["5"]
    used = layer.fake_quantized(layer.weight, torch.full((5,), 0.05))
    assert set((used / 0.05).round(decimals=4).unique().tolist()) <= {-1.0, 0.0, 1.0}


def test_soft_weights_lie_between_float_and_grid():
    wrapper = TINPUTinyMLQATFxModule(
        small(), qconfig_type={"weight": {"bitwidth": 2}}, total_epochs=4, verbose=False
    ).train()
    layer = layers(wrapper)["5"]
    scale, weight = torch.full((5,), 0.05), layer.weight.detach().clamp(-0.05, 0.05)
    layer.weight_quantizer.softness = 0.0
    hard = layer.fake_quantized(weight, scale)
    distances = []
    for softness in (0.1, 0.5, 1.0):
        layer.weight_quantizer.softness = softness
        soft = layer.fake_quantized(weight, scale)
        distances.append(float((soft - hard).abs().mean()))
    assert 0 < distances[0] < distances[1] < distances[2] < float((weight - hard).abs().mean())


# ---- formats -------------------------------------------------------------------------------------


def test_formats_are_those_of_the_target(tmp_path):
    x = torch.randn(1, 1, 8, 8)
    generic, _ = trained("perceptron", GenericTinyMLQATFxModule)
    tinpu = TINPUTinyMLPTQFxModule(small()).calibrate([x])
    with pytest.raises(ValueError, match="format is 'TINPU_INT_MODEL'; allowed: 'FLOAT_MODEL'"):
        generic.export(
            torch.randn(1, 12), tmp_path / "m.onnx", model_qconfig_format="TINPU_INT_MODEL"
        )
    for name in ("QDQ_MODEL", "INT8"):
        with pytest.raises(ValueError, match=f"format is '{name}'; allowed: .*'TINPU_INT_MODEL'"):
            tinpu.export(x, tmp_path / "m.onnx", model_qconfig_format=name)
    with pytest.raises(ValueError, match="needs the wrapper from before conversion"):
        tinpu.convert(model_qconfig_format="FLOAT_MODEL")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["FLOAT_MODEL", "FAKEQ_MODEL", "QDQ_MODEL", "INT_MODEL"])
def test_the_generic_target_writes_each_format(name, tmp_path):
    wrapper, x = trained("perceptron", GenericTinyMLQATFxModule)
    path = wrapper.export(x[:1], tmp_path / "m.onnx", model_qconfig_format=name)
    properties = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert properties["model_format"] == name


@pytest.mark.parametrize("name", ["FLOAT_MODEL", "FAKEQ_MODEL", "TINPU_INT_MODEL"])
def test_the_npu_writes_each_format(name, tmp_path):
    wrapper, x = trained("input_norm", TINPUTinyMLQATFxModule)
    path = wrapper.export(x[:1], tmp_path / "m.onnx", model_qconfig_format=ExportFormat(name))
    assert {p.key: p.value for p in onnx.load(path).metadata_props}["model_format"] == name


@pytest.mark.parametrize("wrapper_type", [GenericTinyMLQATFxModule, TINPUTinyMLQATFxModule])
def test_a_format_is_taken_under_both_of_its_names(wrapper_type, tmp_path):
    wrapper, x = trained("perceptron", wrapper_type)
    for exporter in (wrapper, wrapper.convert()):
        for name in exporter.formats[:2]:
            files = [
                exporter.export(
                    x[:1], tmp_path / "m.onnx", dynamic_batch=False, **options
                ).read_bytes()
                for options in (
                    {"format": name},
                    {"model_qconfig_format": name},
                    {"format": name.value, "model_qconfig_format": name},
                )
            ]
            assert files[0] == files[1] == files[2]
        expected = "format is 'FLOAT_MODEL' and model_qconfig_format, .* is 'QDQ_MODEL'. Give one"
        with pytest.raises(ValueError, match=expected):
            exporter.export(
                x[:1],
                tmp_path / "other.onnx",
                format="FLOAT_MODEL",
                model_qconfig_format="QDQ_MODEL",
            )
    name = wrapper.target.default_format
    for converted in (wrapper.convert(name), wrapper.convert(model_qconfig_format=name)):
        assert converted.format == name
    with pytest.raises(ValueError, match="Give one of them"):
        wrapper.convert("QDQ_MODEL", model_qconfig_format="INT_MODEL")
    assert not (tmp_path / "other.onnx").exists()


@pytest.mark.parametrize("opset", [13, 17, 18])
@pytest.mark.parametrize("simplify", [True, False])
def test_opset_and_simplification_are_honoured(opset, simplify, tmp_path):
    wrapper, x = trained("input_norm", TINPUTinyMLQATFxModule)
    converted = wrapper.convert()
    path = tmp_path / "m.onnx"
    converted.export(x[:1], path, input_names=["input"], opset_version=opset, simplify=simplify)
    model = onnx.load(path)
    assert [o.version for o in model.opset_import if not o.domain] == [opset]
    kinds = [n.op_type for n in model.graph.node]
    assert (kinds[:5] == ["Add", "Mul", "Floor", "Clip", "Conv"]) is simplify
    (found,) = run_onnx(path, (x,))
    assert torch.equal(found, converted(x))


def test_the_default_opset_of_the_npu_is_17(tmp_path):
    wrapper, x = trained("perceptron", TINPUTinyMLQATFxModule)
    wrapper.export(x[:1], tmp_path / "m.onnx")
    assert onnx.load(tmp_path / "m.onnx").opset_import[0].version == 17


def test_strict_rules_write_nothing(tmp_path):
    wrapper, x = trained("flatten", TINPUTinyMLQATFxModule)
    with pytest.raises(ValueError, match="first convolution's input channels is 2"):
        wrapper.convert().export(x[:1], tmp_path / "m.onnx", strict=True)
    assert not list(tmp_path.iterdir())


# ---- statistics ----------------------------------------------------------------------------------


def test_statistics_of_an_error():
    reference = torch.tensor([1.0, -1.0, 1.0, -1.0])
    found = TinyMLQuantFxBaseModule.measure_stats(reference, reference + 0.1)
    assert found["snr_db"] == pytest.approx(20, abs=1e-4)
    assert found["psnr_db"] == pytest.approx(20, abs=1e-4)
    assert found["absmu_by_sigma"] == pytest.approx(0.1, rel=1e-5)
    assert (found["mean"], found["min"]) == pytest.approx((0.1, 0.1), rel=1e-5)
    assert found["max"] == pytest.approx(0.1, rel=1e-5)


def test_statistics_need_the_same_shapes():
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(3,\); they must be the same"):
        TinyMLQuantFxBaseModule.measure_stats(torch.zeros(2), torch.zeros(3))


# ---- configuration -------------------------------------------------------------------------------


def test_mixed_precision_reaches_the_layers():
    qconfig_type = {"weight": {"bitwidth": 8, "mixed_precision": {4: ["1"], 32: ["5"]}}}
    given = copy.deepcopy(qconfig_type)
    wrapper = TINPUTinyMLPTQFxModule(small(), qconfig_type=qconfig_type)
    assert qconfig_type == given
    assert {p: m.weight_quantizer.spec.bit_width for p, m in layers(wrapper).items()} == {"1": 4}
    x = torch.randn(8, 1, 8, 8)
    wrapper.calibrate([x])
    with torch.no_grad():
        assert torch.equal(wrapper.convert(output_int=False)(x), wrapper(x))


def test_a_configuration_of_the_engine_is_for_the_generic_target():
    assert GenericTinyMLPTQFxModule(small(), qconfig_type=QConfig()).module is not None
    assert GenericTinyMLPTQFxModule(small(), qconfig_type="WC8_AT8").module is not None
    with pytest.raises(TypeError, match="qconfig_type is a QConfig; TINPU wrappers take None"):
        TINPUTinyMLPTQFxModule(small(), qconfig_type=QConfig())


def test_the_search_runs_in_the_constructor_and_keeps_no_loader(capsys):
    class Loader:
        def __iter__(self):
            return iter([(torch.randn(8, 1, 8, 8), torch.zeros(8, dtype=torch.long))])

        def __reduce__(self):
            raise TypeError("a loader with workers cannot be pickled")

    qconfig_type = TinyMLQConfigType(
        auto_quantization=True, calibration_dataloader=Loader(), max_bytes=240
    )
    wrapper = TINPUTinyMLQATFxModule(small(), 4, qconfig_type, verbose=False)
    bits = {p: m.weight_quantizer.spec.bit_width for p, m in layers(wrapper).items()}
    sizes = {p: m.weight.numel() for p, m in layers(wrapper).items()}
    assert sum(sizes[p] * b for p, b in bits.items()) / 8 <= 240
    assert "bits on average" in capsys.readouterr().out
    copy.deepcopy(wrapper)
    pickle.dumps(wrapper)
