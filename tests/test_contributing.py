"""CONTRIBUTING.md: each recipe is carried out, and adds the entries that it says and no others."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from edgeailite.quantization import ExportFormat, PTCFxModule, QConfigType, QuantModule
from edgeailite.quantization.arithmetic.presets import PRESETS
from edgeailite.quantization.export import formats, qlinear_forms
from edgeailite.quantization.graph import registry
from edgeailite.quantization.integer.common_rules import COMMON
from edgeailite.quantization.methods import METHODS
from edgeailite.quantization.modules.layer import QuantLayer
from edgeailite.quantization.prepare.prepare import prepare
from edgeailite.quantization.prepare.qconfig import make_policy
from edgeailite.quantization.report import build_report
from edgeailite.quantization.targets.onnx_runtime.conversion import RULES
from edgeailite.quantization.targets.onnx_runtime.target import OnnxRuntime
from edgeailite.quantization.targets.registry import TARGETS
from edgeailite.quantization.targets.tinpu.conversion import RULES as TINPU_RULES
from edgeailite.quantization.verify import verify

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "CONTRIBUTING.md"
REGISTRIES = {
    "operations": registry.OPERATIONS,
    "module types": registry._BY_MODULE,
    "functions": registry._BY_FUNCTION,
    "tensor methods": registry._BY_METHOD,
    "type names": registry._BY_TYPE_NAME,
    "rules of onnx_runtime": RULES._fused,
    "rules of onnx_runtime, alone": RULES._placed,
    "rules of tinpu": TINPU_RULES._fused,
    "rules of tinpu, alone": TINPU_RULES._placed,
    "rules of all": COMMON._placed,
    "targets": TARGETS,
    "presets": PRESETS,
    "post-training methods": METHODS,
    "export formats": formats._WRITERS,
    "integer forms": qlinear_forms._FORMS,
}
RECIPES = {
    "an operation": {
        "operations": 1,
        "functions": 1,
        "tensor methods": 1,
        "rules of onnx_runtime": 1,
    },
    "a target": {"targets": 1},
    "a preset": {"presets": 1},
    "a post-training method": {"post-training methods": 1},
    "an export format": {"export formats": 1},
}


@pytest.fixture(autouse=True)
def before(tmp_path, monkeypatch):
    """Registries as they are, which the test leaves so; files go to an empty folder."""
    monkeypatch.chdir(tmp_path)
    saved = {name: dict(entries) for name, entries in REGISTRIES.items()}
    yield saved
    for name, entries in REGISTRIES.items():
        entries.clear()
        entries.update(saved[name])


def _section(title):
    """Python blocks under a heading, and the line of the page that each begins in."""
    text = PAGE.read_text()
    start = text.index(f"\n## {title}\n")
    end = text.find("\n## ", start + 1)
    found = re.finditer(r"^```python\n(.*?)^```$", text[start:end], re.MULTILINE | re.DOTALL)
    return [(m[1], text[: start + m.start(1)].count("\n")) for m in found]


def _run(blocks, names):
    for block, line in blocks:
        exec(compile("\n" * line + block, str(PAGE), "exec"), names)


def _network():
    names = {}
    _run(_section("What an addition touches"), names)
    return names


def _added(before):
    return {
        name: len(entries) - len(before[name])
        for name, entries in REGISTRIES.items()
        if entries != before[name]
    }


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_adds_its_entries_and_runs(recipe, before):
    register, use = _section(f"Add {recipe}")
    names = _network()
    _run([register], names)
    assert _added(before) == RECIPES[recipe]
    for name, entries in before.items():
        assert {key: REGISTRIES[name][key] for key in entries} == entries
    _run([use], names)


def test_recipes_are_those_of_the_table():
    text = PAGE.read_text()
    assert re.findall(r"^## Add (.*)$", text, re.MULTILINE) == list(RECIPES)
    assert re.findall(r"^\| \[(.*?)\]\(#", text, re.MULTILINE) == list(RECIPES)


def test_recipe_blocks_fit_the_line_length():
    lines = [
        line
        for title in RECIPES
        for block, _ in _section(f"Add {title}")
        for line in block.splitlines()
    ]
    assert [line for line in lines if len(line) > 100] == []


def test_unregistered_operation_runs_in_float():
    """The recipe's first sentence: without the row the sum is no integer operation."""
    names = _network()
    wrapper = PTCFxModule(names["Network"]()).calibrate([names["images"]])
    assert [entry.operation for entry in build_report(wrapper).floats.values()] == ["cumsum"]


def test_registered_operation_is_quantized_wherever_it_is_called():
    names = _network()
    _run(_section("Add an operation")[:1], names)

    class Calls(nn.Module):
        def forward(self, x):
            return torch.cumsum(x, 1) + x.cumsum(dim=1) + torch.cumsum(input=x, dim=1)

    wrapper = PTCFxModule(Calls(), qconfig_type="WC8SYMP2_AT8SYMP2").calibrate([names["images"]])
    assert build_report(wrapper).floats == {}
    operations = [node.meta["call"].operation.name for node in wrapper.module.graph.nodes]
    assert operations.count("cumsum") == 3


def test_target_without_an_operation_converts_none(tmp_path):
    names = _network()
    _run(_section("Add a target")[:1], names)
    images, network = names["images"], names["Network"]()
    converted = {}
    for target in ("onnx_runtime", "no_products"):
        prepared = prepare(network, make_policy(), TARGETS[target], (images,))
        converted[target] = QuantModule(prepared).calibrate([images]).convert()
        network = names["Network"]()
    kinds = {t: {type(m).__name__ for m in c.modules()} for t, c in converted.items()}
    assert "IntegerMul" in kinds["onnx_runtime"]
    assert "IntegerMul" not in kinds["no_products"]


def test_target_without_a_layer_leaves_its_weight_in_float(tmp_path):
    class NoTransposed(OnnxRuntime):
        def computes(self, operation):
            return operation.name != "transposed_convolution" and super().computes(operation)

    images = torch.randn(4, 3, 8, 8)
    network = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 4, 2, 2), nn.Conv2d(4, 2, 1))
    )
    prepared = prepare(network, make_policy("WC8SYMP2_AT8SYMP2"), NoTransposed(), (images,))
    assert [isinstance(m, QuantLayer) for m in prepared.children()] == [True, False, False, True]
    wrapper = QuantModule(prepared).calibrate([images])
    wrapper.export(images, tmp_path / "model.onnx")
    assert list(build_report(wrapper).floats) == ["2"]
    assert (
        verify(wrapper, [images], tmp_path / "model.onnx").mismatches["evaluation vs integer graph"]
        == 0
    )


def test_registered_preset_and_format_are_known_by_name():
    names = _network()
    _run(_section("Add a preset")[:1] + _section("Add an export format")[:1], names)
    assert QConfigType.choices()[-1] == QConfigType("WC6SYMP2_AT8SYMP2").value
    assert ExportFormat.choices()[-1] == ExportFormat("WEIGHTS_TEXT").value
    with pytest.raises(ValueError, match=r"'WC9'; accepted: .*WC6SYMP2_AT8SYMP2\), a dict"):
        make_policy("WC9")


def test_second_registration_of_a_name_is_refused():
    for recipe in RECIPES:
        register = _section(f"Add {recipe}")[:1]
        _run(register, _network())
        with pytest.raises(ValueError, match="already"):
            _run(register, _network())
