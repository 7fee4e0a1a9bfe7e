"""Functions of integers on a microcontroller: one table in integer graph, file and C."""

from __future__ import annotations

import re

import onnx
import pytest
import torch
from torch import nn

from edgeailite.quantization import TINPUTinyMLPTQFxModule, TINPUTinyMLQATFxModule
from edgeailite.quantization.integer.grid import Grid
from edgeailite.quantization.integer.memory import estimate_memory
from edgeailite.quantization.integer.table import IntegerTable
from edgeailite.quantization.modules.pact2 import quantizers
from edgeailite.quantization.report import build_report
from edgeailite.quantization.targets.tinpu.operators import ExactSoftmax
from edgeailite.quantization.verify import verify
from edgeailite.xnn.layers import QAct
from tests.quantization.integer.test_functions import FUNCTIONS, Functions
from tests.quantization.targets.tinpu.test_c_files import MAIN, compile_and_run, needs_compiler
from tests.quantization.tinyml_networks import trained

pytestmark = pytest.mark.filterwarnings("ignore:.*the NPU computes.*:UserWarning")
X = torch.randn(4, 3, 5, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def all_functions():
    torch.manual_seed(0)
    model = Functions(list(FUNCTIONS))
    return TINPUTinyMLPTQFxModule(model, example_inputs=X, verbose=False).calibrate([X])


def with_random_ranges(wrapper, seed):
    generator = torch.Generator().manual_seed(seed)
    for quantizer in quantizers(wrapper.module).values():
        largest = 2.0 ** (torch.rand((), generator=generator) * 7 - 3)
        quantizer.clips_act.copy_(torch.stack([-largest, largest]))
    return wrapper.convert()


def tables_in_c(folder):
    """Integers of the tables in the header, by the path of their operation."""
    text = (folder / "model.h").read_text()
    operations = re.findall(r"/\* (\S+) \*/\n +\{\.kind = EDGEAILITE_(\w+).*?weights = (\w+)", text)
    arrays = dict(re.findall(r"static const uint8_t (\w+)\[\] = \{([^}]*)\}", text))
    return {
        path: torch.tensor([int(word) for word in arrays[name].split(",") if word.strip()])
        for path, kind, name in operations
        if kind == "TABLE"
    }


@needs_compiler
@pytest.mark.parametrize("seed", range(3))
def test_the_table_in_c_is_the_function_between_its_grids(all_functions, seed, tmp_path):
    converted = with_random_ranges(all_functions, seed)
    converted.export_c(X, tmp_path)
    found = tables_in_c(tmp_path)
    tables = {p: m for p, m in converted.module.named_modules() if isinstance(m, IntegerTable)}
    assert found.keys() == tables.keys()
    assert len(tables) == len(FUNCTIONS) + 1
    for i, (name, function) in enumerate(FUNCTIONS.items()):
        wanted = [p for p in found if p.startswith(f"functions.{i}.")]
        if name == "hand_written_hardswish":  # a product of two functions
            continue
        (path,) = wanted
        source, output = tables[path].input.grid, tables[path].output.grid
        q = torch.arange(source.quant_min, source.quant_max + 1.0)
        assert len(q) == 256
        real = 8**-0.5 * q * source.scale if name == "with_a_size" else function(q * source.scale)
        exact = torch.floor(real.nan_to_num(nan=0.0) / output.scale + 0.5)
        assert torch.equal(found[path], exact.clamp(-128, 127).long() & 0xFF), name
    compared, wrong = map(int, compile_and_run(tmp_path, MAIN))
    assert compared > 1000
    assert wrong == 0


@pytest.mark.slow
def test_files_and_evaluation_have_the_values_of_the_tables(all_functions, tmp_path):
    converted = with_random_ranges(all_functions, 7)
    converted(X)
    path = all_functions.export(X, tmp_path / "m.onnx")
    assert verify(all_functions, [X, 2 * X], path).exact
    graph = onnx.load(path).graph
    kinds = [node.op_type for node in graph.node]
    tables = [m.table(*m.numbers) for m in converted.modules() if isinstance(m, IntegerTable)]
    assert kinds.count("Gather") == len({tuple(table.tolist()) for table in tables})
    assert not {"Sigmoid", "Erf", "Tanh", "Exp", "Sqrt", "Pow", "Div"} & set(kinds)
    assert "functions.0.module.activation_q.table" in {t.name for t in graph.initializer}


@pytest.mark.parametrize("bits", [8, 6, 4])
@needs_compiler
def test_a_table_has_an_entry_for_each_integer(bits, tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Tanh(), nn.Conv2d(8, 4, 1), nn.ReLU6(), nn.GELU()
    )
    qconfig = {"weight": {"bitwidth": 8}, "activation": {"bitwidth": bits}}
    wrapper = TINPUTinyMLPTQFxModule(network, qconfig_type=qconfig, verbose=False).calibrate([X])
    converted = wrapper.convert()
    converted.export_c(X, tmp_path)
    sizes = {path: len(table) for path, table in tables_in_c(tmp_path).items()}
    memory = {layer.name: layer.total for layer in estimate_memory(converted, X).layers}
    assert sizes["1.activation_q"] == 2**bits
    assert sizes == {path: memory[path] for path in sizes}
    assert int(compile_and_run(tmp_path, MAIN)[1]) == 0


@needs_compiler
@pytest.mark.parametrize("wrapper_type", [TINPUTinyMLQATFxModule, TINPUTinyMLPTQFxModule])
def test_gates_are_integers_everywhere(wrapper_type, tmp_path):
    wrapper, x = trained("gated", wrapper_type)
    if wrapper.trains:
        assert float(wrapper.module.stem[0].weight.grad.abs().sum()) > 0
    report = build_report(wrapper, [x])
    assert report.floats == {}
    (text,) = (w for w in report.warnings if w.startswith("the CPU computes"))
    assert "'stem.2' (a function, as a table of 256 integers)" in text
    assert "'mul' (a product of two values)" in text
    path = wrapper.export(x[:1], tmp_path / "m.onnx")
    assert verify(wrapper, [x], path).exact
    wrapper.convert().export_c(x[:3], tmp_path)
    assert int(compile_and_run(tmp_path, MAIN)[1]) == 0


@pytest.mark.parametrize("count", [3, 49, 300])
def test_softmax_is_that_of_integers_and_near_the_exact_one(count):
    generator = torch.Generator().manual_seed(count)
    for exponent, scale in ((-5, 2.0**-7), (-3, 2.0**-7), (-4, 2.0)):
        source = Grid(2.0**exponent, 0, -128, 127, rounding="half_up")
        softmax = ExactSoftmax(source, Grid(scale, 0, -128, 127, rounding="half_up"), -1)
        q = torch.randint(-128, 128, (200, count), generator=generator).float()
        found = softmax(q)
        (table,) = (t.long() for t in softmax.tables(count, q.device))
        e = table[(q.amax(-1, keepdim=True) - q).long()]
        one, unit = (1 / scale).as_integer_ratio()
        total = unit * e.sum(-1, keepdim=True)
        assert torch.equal(found, ((2 * e * one + total) // (2 * total)).clamp(-128, 127).float())
        exact = torch.floor((q * 2.0**exponent).double().softmax(-1) / scale + 0.5)
        different = found != exact.clamp(-128, 127).float()
        assert float((found - exact.clamp(-128, 127).float()).abs().max()) <= 1
        assert float(different.float().mean()) < 0.001


class Attention(nn.Module):
    """Softmax along each axis, of values of two signs, into a sum and at the end."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.Linear(4, 9)

    def forward(self, x):
        x = self.stem(x) * 4
        x = x.softmax(1) + torch.softmax(x.relu(), 2) + nn.functional.softmax(x, -1) + x
        return self.head(self.inner(x).mean((2, 3))).softmax(-1)


@needs_compiler
def test_softmax_is_computed_in_integers_everywhere(tmp_path):
    torch.manual_seed(0)
    wrapper = TINPUTinyMLPTQFxModule(Attention(), example_inputs=X, verbose=False).calibrate([X])
    assert build_report(wrapper, [X]).floats == {}
    path = wrapper.export(X, tmp_path / "m.onnx")
    assert verify(wrapper, [X, 2 * X], path).exact
    wrapper.convert().export_c(2 * X, tmp_path)
    compared, wrong = map(int, compile_and_run(tmp_path, MAIN))
    assert compared > 1000
    assert wrong == 0


def test_a_function_of_the_raw_input_takes_floats_unless_they_are_quantized():
    class Logarithm(nn.Module):
        def __init__(self, quantizes):
            super().__init__()
            self.quantize = QAct() if quantizes else nn.Identity()
            self.norm, self.layer = nn.BatchNorm1d(6), nn.Linear(6, 4)

        def forward(self, x):
            return self.layer(self.norm(torch.log(self.quantize(x))))

    x = torch.rand(16, 6) + 0.01
    for quantizes, count in ((False, 0), (True, 1)):
        wrapper = TINPUTinyMLPTQFxModule(Logarithm(quantizes), verbose=False).calibrate([x])
        tables = [m for m in wrapper.convert().modules() if isinstance(m, IntegerTable)]
        assert len(tables) == count
        assert len(build_report(wrapper, [x]).floats) == 1 - count


def test_a_product_out_of_reach_has_a_clear_error():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return torch.clamp(self.a(x) * self.b(x), -1e-4, 1e-4)

    wrapper = TINPUTinyMLPTQFxModule(Product(), verbose=False).calibrate([torch.randn(8, 4) * 1e3])
    with pytest.raises(ValueError, match=r"Product 'mul': The factor .* no multiplier of 8 bits"):
        wrapper.convert()
