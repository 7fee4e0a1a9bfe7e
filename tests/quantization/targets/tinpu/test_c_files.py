import shutil
import subprocess

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeailite.quantization import (
    TINPUTinyMLPTQFxModule,
    TINPUTinyMLQATFxModule,
)
from edgeailite.quantization.targets.c.program import pack
from edgeailite.quantization.targets.tinpu.c_program import make_program
from tests.quantization.tinyml_networks import NETWORKS, trained

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")
FLAGS = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O1", "-ffp-contract=off"]
MAIN = r"""
#include <stdio.h>
#include "model.h"
#include "model_vectors.h"

static uint8_t arena[MODEL_ARENA_SIZE];

int main(void)
{
    unsigned compared = 0, wrong = 0;
    for (unsigned v = 0; v < MODEL_VECTORS; v++) {
        const model_check *check = model_checks;
        for (unsigned i = 0; i < MODEL_OPERATIONS; i++) {
            edgeailite_step(&model_operations[i], model_inputs + v * MODEL_INPUT_SIZE, arena);
            if (check == model_checks + MODEL_CHECKS || check->operation != i) continue;
            for (unsigned j = 0; j < check->size; j++, compared++) {
                uint8_t byte = arena[check->place + j];
                int value = check->is_signed ? (int)(int8_t)byte : (int)byte;
                wrong += value != check->expected[v * check->size + j];
            }
            check++;
        }
    }
    printf("%u %u\n", compared, wrong);
    return 0;
}
"""


def compile_and_run(folder, main):
    (folder / "main.c").write_text(main)
    command = [COMPILER, *FLAGS, "main.c", "edgeailite_runner.c", "-o", "run"]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    run = subprocess.run([folder / "run"], capture_output=True, text=True, check=True)
    return run.stdout.split()


@needs_compiler
@pytest.mark.parametrize(
    ("name", "bits"),
    [(name, 8) for name in NETWORKS if name != "with_float"]
    + [(name, bits) for name in ("residual_relu_conv", "concat", "conv1d") for bits in (4, 2)],
)
def test_every_operation_gives_the_values_of_pytorch(name, bits, tmp_path):
    wrapper, x = trained(name, TINPUTinyMLQATFxModule, 0, bits)
    wrapper.convert().export_c(2 * x[:4], tmp_path)
    compared, wrong = map(int, compile_and_run(tmp_path, MAIN))
    assert compared > 100
    assert wrong == 0


class Arguments(nn.Module):
    """Calls whose arguments are one number for all axes, text, or come from shapes."""

    def __init__(self):
        super().__init__()
        self.stem, self.same = nn.Conv2d(1, 4, 3), nn.Conv2d(8, 4, (3, 5), padding="same")
        self.up = nn.ConvTranspose2d(4, 4, 3, 2, 1)
        self.valid = nn.Conv2d(4, 4, 3, padding="valid")
        self.kernel = nn.Parameter(torch.randn(4, 4, 3, 3) / 4)

    def forward(self, x):
        x = self.stem(x)
        y = self.same(torch.cat([x, x], 1))
        y = F.conv2d(F.relu(y), self.kernel, stride=2, padding=1)
        y = self.valid(self.up(y, output_size=x.shape[2:]))
        return F.conv_transpose2d(y, self.kernel, stride=2, padding=1)


@needs_compiler
def test_arguments_of_calls_are_read(tmp_path):
    model, x = Arguments(), torch.randn(4, 1, 9, 8)
    wrapper = TINPUTinyMLPTQFxModule(model, verbose=False, example_inputs=x).calibrate([x])
    wrapper.convert().export_c(x, tmp_path)
    compared, wrong = map(int, compile_and_run(tmp_path, MAIN))
    assert compared > 1000
    assert wrong == 0


class FourAxes(nn.Module):
    """Elements of values with more axes than channels, height and width."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x):
        x = self.stem(x).unflatten(1, (2, 4))
        x = torch.tanh(x + x)
        return self.head((x * x).flatten(1, 2))


@needs_compiler
def test_values_with_four_axes_are_computed_to_the_last(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(4, 1, 9, 8)
    wrapper = TINPUTinyMLPTQFxModule(FourAxes(), verbose=False, example_inputs=x).calibrate([x])
    wrapper.convert().export_c(x, tmp_path)
    assert int(compile_and_run(tmp_path, MAIN)[1]) == 0
    pooled = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Unflatten(1, (2, 4)), nn.AvgPool3d(2))
    wrapper = TINPUTinyMLPTQFxModule(pooled, verbose=False, example_inputs=x).calibrate([x])
    with pytest.raises(ValueError, match="'2_sums' cannot be written as C: it is 3-d"):
        wrapper.convert().export_c(x, tmp_path)


class Sums(nn.Module):
    """A sum of images behind a sum of neighbouring channels, if that is asked for."""

    def __init__(self, sums_channels=False):
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8, 4)
        self.sums_channels = sums_channels

    def forward(self, x):
        x = self.stem(x)
        x = x.sum(1, keepdim=True) + x if self.sums_channels else x
        return self.head(x.sum((2, 3)))


@needs_compiler
def test_sums_of_images_are_computed_to_the_last(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(4, 1, 9, 8)
    wrapper = TINPUTinyMLPTQFxModule(Sums(), verbose=False, example_inputs=x).calibrate([x])
    wrapper.convert().export_c(x, tmp_path)
    assert int(compile_and_run(tmp_path, MAIN)[1]) == 0
    wrapper = TINPUTinyMLPTQFxModule(Sums(True), verbose=False, example_inputs=x).calibrate([x])
    with pytest.raises(ValueError, match="it averages over other axes than height and width"):
        wrapper.convert().export_c(x, tmp_path)


@needs_compiler
def test_the_documented_program_prints_the_class(tmp_path):
    wrapper, x = trained("conv1d", TINPUTinyMLQATFxModule)
    converted = wrapper.convert()
    converted.export_c(x[:1], tmp_path)
    main = r"""
#include <stdio.h>
#include "model.h"
#include "model_vectors.h"
static uint8_t arena[MODEL_ARENA_SIZE];
int main(void)
{
    edgeailite_run(model_operations, MODEL_OPERATIONS, model_inputs, arena);
    for (int i = 0; i < MODEL_OUTPUT_SIZE; i++) printf("%d ", (int8_t)arena[MODEL_OUTPUT + i]);
    return 0;
}
"""
    assert list(map(int, compile_and_run(tmp_path, main))) == converted(x[:1])[0].int().tolist()


@needs_compiler
def test_a_wrong_weight_is_noticed(tmp_path):
    wrapper, x = trained("flatten", TINPUTinyMLQATFxModule)
    wrapper.convert().export_c(x[:2], tmp_path)
    header = (tmp_path / "model.h").read_text()
    start = header.index("{\n", header.index("model_1_weights")) + 2
    (tmp_path / "model.h").write_text(header[:start] + "    127, 127, 127,\n" + header[start:])
    assert int(compile_and_run(tmp_path, MAIN)[1]) > 0


def test_files_are_the_same_each_time_and_name_no_place(tmp_path):
    wrapper, x = trained("conv1d", TINPUTinyMLQATFxModule)
    files = [wrapper.convert().export_c(x[:2], tmp_path / str(i), name="fan") for i in (1, 2)]
    assert [p.name for p in files[0]] == [
        "fan.h", "fan_vectors.h", "edgeailite_runner.h", "edgeailite_runner.c",
    ]  # fmt: skip
    for first, second in zip(*files, strict=True):
        assert first.read_text() == second.read_text()
        assert str(tmp_path) not in first.read_text()
    assert sorted(p.name for p in (tmp_path / "1").iterdir()) == sorted(p.name for p in files[0])


def test_weights_are_packed_lowest_bits_first():
    assert pack(torch.tensor([1.0, -1.0, 0.0, 1.0, -1.0]), 2) == [0b01001101, 0b11]
    assert pack(torch.tensor([[7.0, -7.0], [3.0, 0.0]]), 4) == [0x97, 0x03]
    assert pack(torch.tensor([-128.0, 127.0]), 8) == [0x80, 0x7F]


@pytest.mark.parametrize("name", ["residual_relu_pool", "concat", "sequence"])
def test_buffers_that_live_together_do_not_overlap(name):
    wrapper, x = trained(name, TINPUTinyMLQATFxModule)
    program = make_program(wrapper.convert().module, x)
    buffers = list({id(op.result): op.result for op in program.instructions}.values())
    used = {
        b: [i for i, op in enumerate(program.instructions) if b in (*op.operands, op.result)]
        for b in buffers
    }
    for a in buffers:
        assert a.place + a.size <= program.arena
        for b in buffers:
            together = a is not b and used[a][0] <= used[b][-1] and used[b][0] <= used[a][-1]
            assert not together or a.place + a.size <= b.place or b.place + b.size <= a.place
    assert program.arena < sum(b.size for b in buffers)


class HalfImage(nn.Module):
    def forward(self, x):
        return F.max_pool2d(x, x.shape[2] // 2)


class Broadcast(nn.Module):
    def forward(self, x):
        return x.unsqueeze(2) * x.unsqueeze(1)


def test_what_has_no_form_in_c_is_named(tmp_path):
    wrapper, x = trained("with_float", TINPUTinyMLQATFxModule)
    with pytest.raises(ValueError, match="'pad' cannot be written as C: ZeroPad2d is no operation"):
        wrapper.convert().export_c(x[:1], tmp_path)
    wrapper, x = trained("flatten", TINPUTinyMLQATFxModule, float_ops=["fb"])
    with pytest.raises(ValueError, match="its offsets are floats"):
        wrapper.convert().export_c(x[:1], tmp_path)
    wrapper, x = trained("input_norm", TINPUTinyMLQATFxModule, float_ops=["qdq"])
    with pytest.raises(ValueError, match="its factor is a float"):
        wrapper.convert().export_c(x[:1], tmp_path)
    x = torch.randn(2, 1, 6, 6)
    for layer, why in (
        (nn.Conv2d(4, 4, 4, padding="same"), "its padding is not the same on both sides"),
        (nn.Conv2d(4, 4, 3, 1, 1, padding_mode="reflect"), "it pads with other values than zeros"),
        (HalfImage(), "its kernel_size is computed in the model"),
    ):
        wrapper = TINPUTinyMLPTQFxModule(nn.Sequential(nn.Conv2d(1, 4, 1), layer), verbose=False)
        with pytest.raises(ValueError, match=f"cannot be written as C: {why}"):
            wrapper.calibrate([x]).convert().export_c(x[:1], tmp_path)
    x = torch.randn(4, 4)
    for layer, why in (
        (nn.GroupNorm(2, 4), r"'1' .*: GroupNorm computes in float\. .* Replace the operation by"),
        (nn.LayerNorm(4), r"'1' .*: LayerNorm computes in float\."),
        (Broadcast(), r"'1.activation_q' .*: it multiplies values of shapes \(4, 1\) and \(1, 4\)"),
    ):
        network = nn.Sequential(nn.Linear(4, 4), layer)
        wrapper = TINPUTinyMLPTQFxModule(network, verbose=False).calibrate([x])
        with pytest.raises(ValueError, match=why):
            wrapper.convert().export_c(x[:1], tmp_path)
    network = nn.Sequential(nn.Sigmoid(), nn.Linear(4, 4))
    wrapper = TINPUTinyMLPTQFxModule(network, verbose=False).calibrate([x])
    with pytest.raises(ValueError, match=r"'0' .*: Sigmoid reads floats \(xnn.layers.QAct\(\) in"):
        wrapper.convert().export_c(x[:1], tmp_path)
    assert not list(tmp_path.iterdir())


def test_bad_names_are_refused(tmp_path):
    wrapper, x = trained("perceptron", TINPUTinyMLQATFxModule)
    with pytest.raises(ValueError, match="name is '8bit'; it must be a C identifier"):
        wrapper.convert().export_c(x[:1], tmp_path, name="8bit")
