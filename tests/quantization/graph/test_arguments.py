"""Every argument of every row is computed as torch does, or refused by name.

The samples of tests/quantization/graph/argument_samples.py are computed by torch, the prepared
model, the integer graph and ONNX Runtime.
"""

import copy
import inspect
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from edgeailite.quantization import PTCFxModule, TINPUTinyMLPTQFxModule
from edgeailite.quantization.arithmetic.sqnr import sqnr
from edgeailite.quantization.graph import registry
from edgeailite.quantization.graph.calls import arguments, operation_of
from edgeailite.quantization.graph.capture import capture
from edgeailite.quantization.graph.guard import TraceError
from edgeailite.quantization.graph.model import graph_of, module_of, program_of
from edgeailite.quantization.graph.moves import PAD_BELOW
from edgeailite.quantization.graph.registry import (
    OPERATIONS,
    operation_of_function,
    operation_of_method,
    operation_of_module,
)
from edgeailite.quantization.report.reasons import float_operations
from edgeailite.quantization.verify.outputs import flat, output_grids
from tests.quantization.graph.argument_samples import IMAGE_SIZES, SAMPLES, TABLES, Bank, axes_of
from tests.quantization.helpers import run_onnx

AXES = (1, 2, 3)
WRAPPERS = {
    "traced": lambda m, x: PTCFxModule(m, qconfig_type="WC8SYMP2_AT8SYMP2"),
    "exported": lambda m, x: PTCFxModule(m, qconfig_type="WC8SYMP2_AT8SYMP2", example_inputs=x),
    "free": lambda m, x: PTCFxModule(m, qconfig_type="WC8_AT8"),
    "tinpu": lambda m, x: TINPUTinyMLPTQFxModule(m, example_inputs=x, verbose=False),
}


def runs_of(kinds, slow):
    return pytest.mark.parametrize(
        ("kind", "axes"),
        [
            pytest.param(kind, axes, marks=pytest.mark.slow if kind in slow else ())
            for kind in kinds
            for axes in AXES
        ],
    )


POWER_OF_TWO = ("traced", "exported", "tinpu")
WAYS = {"exported": "torch.export"}
LEAST_SQNR = 20.0
LEAST_SQNR_OF_FLOATS = 50.0  # calibration corrects biases a little


class Run:
    """A bank of these samples for one target: calibrated, and its outputs in torch."""

    def __init__(self, kind, axes, names=SAMPLES, x=None):
        torch.manual_seed(0)
        self.samples = {
            name: SAMPLES[name]
            for name in names
            if axes_of(name) == axes
            and SAMPLES[name].is_exported
            and (SAMPLES[name].on_tinpu or kind != "tinpu")
        }
        bank = Bank(axes, self.samples, has_condition=kind == "exported").eval()
        self.x = torch.randn(2, 3, *IMAGE_SIZES[axes]) if x is None else x
        with torch.no_grad():
            self.expected = self.named(copy.deepcopy(bank)(self.x))
            self.wrapper = WRAPPERS[kind](bank, self.x).train()
            self.wrapper.bias_calibration.rate = 0.0  # weights stay what torch computes with
            self.wrapper(self.x)
            self.simulated = self.named(self.wrapper.eval()(self.x))
        assert program_of(self.wrapper.module).way == WAYS.get(kind, "torch.fx")
        self.converted = self.wrapper.convert()
        with torch.no_grad():
            self.integer = self.named(flat(self.converted(self.x)))
        found = output_grids(self.converted.module)
        self.grids = dict(zip(self.samples, found, strict=True))

    def named(self, outputs):
        return dict(zip(self.samples, outputs, strict=True))

    def steps_between(self, before, after):
        """Largest difference of each sample's values in steps; of values in float: 0 if close."""
        return {
            name: steps_between(before[name], after[name], self.grids[name])
            for name in self.samples
        }


def steps_between(a, b, grid):
    if grid.scale is None:
        return 0 if torch.allclose(a, b, 1e-4, 1e-5) else 1000
    return round(float((a - b).abs().max()) / grid.scale)


@pytest.fixture(scope="module")
def runs():
    made = {}

    def run(kind, axes):
        if (kind, axes) not in made:
            made[kind, axes] = Run(kind, axes)
        return made[kind, axes]

    return run


def unequal(steps, allowed=None):
    return {n: s for n, s in steps.items() if s > (allowed[n] if allowed else 0)}


# ---- values -------------------------------------------------------------------------------------


@runs_of(POWER_OF_TWO, slow=["exported"])
def test_the_prepared_model_computes_what_torch_does(kind, axes, runs):
    run = runs(kind, axes)
    found = {
        name: (y.shape, float(sqnr(y, run.simulated[name]))) for name, y in run.expected.items()
    }
    assert {n: y.shape for n, y in run.simulated.items()} == {n: s for n, (s, _) in found.items()}
    assert {n: db for n, (_, db) in found.items() if db < LEAST_SQNR} == {}


@runs_of(POWER_OF_TWO, slow=["exported"])
def test_the_integer_graph_computes_what_the_prepared_model_does(kind, axes, runs):
    run = runs(kind, axes)
    real = {n: y * run.grids[n].factor for n, y in run.integer.items()}
    steps = {
        n: steps_between(run.simulated[n], y, run.grids[n]._replace(scale=scale(run.grids[n])))
        for n, y in real.items()
    }
    assert unequal(steps) == {}


def scale(grid):
    return None if grid.scale is None else grid.scale * grid.factor


@runs_of(POWER_OF_TWO, slow=["exported", "tinpu"])
def test_the_file_computes_what_the_integer_graph_does(kind, axes, runs, tmp_path):
    run = runs(kind, axes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the NPU does not compute
        path = run.converted.export(
            run.x, tmp_path / "model.onnx", opset_version=18, dynamic_batch=False
        )
    allowed = {name: sample.steps for name, sample in run.samples.items()}
    for optimization in ("off", "on"):
        found = run.named(run_onnx(path, (run.x,), optimization))
        assert unequal(run.steps_between(run.integer, found), allowed) == {}, optimization


@pytest.mark.slow
@pytest.mark.parametrize("axes", AXES)
def test_the_float_file_computes_what_torch_does(axes, runs, tmp_path):
    run = runs("traced", axes)
    path = run.wrapper.export(
        run.x, tmp_path / "model.onnx", format="FLOAT_MODEL", dynamic_batch=False
    )
    found = run.named(run_onnx(path, (run.x,)))
    decibels = {name: float(sqnr(y, found[name])) for name, y in run.expected.items()}
    assert {name: db for name, db in decibels.items() if db < LEAST_SQNR_OF_FLOATS} == {}


OTHERS = ("INT_MODEL", "CLIP_MODEL", "FAKEQ_MODEL")


def samples_in(format):
    """Of each row the first sample, and of the others one in three: each is in one format."""
    rows = [(table, row) for table in TABLES for row in table]
    first = {f"{row}_{next(iter(table[row]))}" for table, row in rows}
    others = [name for name in SAMPLES if name not in first]
    turn = set(others[OTHERS.index(format) :: len(OTHERS)])
    return [name for name in SAMPLES if name in first | turn]


@pytest.mark.slow
@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("format", OTHERS)
def test_other_files_compute_what_torch_does(format, axes, runs, tmp_path):
    run = Run("traced", axes, samples_in(format), runs("traced", axes).x)
    path = run.wrapper.export(run.x, tmp_path / "model.onnx", format=format, dynamic_batch=False)
    found = run.named(run_onnx(path, (run.x,)))
    decibels = {name: float(sqnr(y, found[name])) for name, y in run.expected.items()}
    assert {name: db for name, db in decibels.items() if db < LEAST_SQNR} == {}


@pytest.mark.slow
@pytest.mark.parametrize("axes", AXES)
def test_free_scales_differ_by_one_step_at_most(axes, runs, tmp_path):
    run = runs("free", axes)
    one = dict.fromkeys(run.samples, 1)
    assert unequal(run.steps_between(run.simulated, run.integer), one) == {}
    path = run.converted.export(run.x, tmp_path / "model.onnx", dynamic_batch=False)
    found = run.named(run_onnx(path, (run.x,)))
    assert unequal(run.steps_between(run.integer, found), one) == {}


# ---- refusals -----------------------------------------------------------------------------------


def reasons(run):
    """Reason for each sample that has an operation in float."""
    found = {name: "" for name in run.samples}
    for path, entry in float_operations(run.wrapper.module).items():
        if path.startswith("samples."):
            found[path.split(".")[1]] += entry.reason
    return found


@pytest.mark.parametrize("axes", AXES)
def test_what_is_not_computed_in_integers_is_named(axes, runs):
    run = runs("traced", axes)
    found = reasons(run)
    wrong = {
        name: found[name]
        for name, sample in run.samples.items()
        if sample.refused not in found[name] or bool(sample.refused) != bool(found[name])
    }
    assert wrong == {}


def test_averages_that_the_npu_does_not_compute_are_named(runs):
    found = reasons(runs("tinpu", 2))
    named = {name: reason for name, reason in found.items() if reason and "mean" in name}
    assert set(named) == {"mean_all", "mean_batch", "mean_dim_computed", "mean_float64"}
    assert "mean over dim=None includes the batch" in found["mean_all"]
    assert "mean over dim=0 includes the batch" in found["mean_batch"]
    assert "dim=(computed in the model) has no integer form" in found["mean_dim_computed"]
    assert "output_size=(computed in the model)" in found["adaptive_avg_pool_half"]
    assert found["avg_pool_image"] == found["avg_pool_image_by_size"] == ""


def test_adaptive_windows_of_different_sizes_stop_the_npus_wrapper():
    wrapper = TINPUTinyMLPTQFxModule(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(3)), verbose=False
    )
    with pytest.raises(ValueError, match=r"^'1': An adaptive .* from \(4, 4\) to \(3, 3\)"):
        wrapper.train()(torch.randn(2, 1, 6, 6))


class Calls(nn.Module):
    def __init__(self, compute):
        super().__init__()
        self.conv, self.compute = nn.Conv2d(3, 3, 1), compute

    def forward(self, x):
        return self.compute(self.conv(x))


@pytest.mark.parametrize(
    ("compute", "reason"),
    [
        (lambda y: F.dropout(y), "training=True has no integer form"),
        (lambda y: y.flatten(1).T, "the attribute .T has no integer form"),
        (lambda y: y.mT, "the attribute .mT has no integer form"),
        (lambda y: y.div(2, rounding_mode="trunc"), "rounding_mode='trunc'"),
        (lambda y: F.batch_norm(y, None, None, training=True), "no integer form is known"),
    ],
)
def test_a_call_runs_in_float_because_of_an_argument(compute, reason):
    wrapper = PTCFxModule(Calls(compute), qconfig_type="WC8SYMP2_AT8SYMP2")
    found = [entry.reason for entry in float_operations(wrapper.module).values()]
    assert any(reason in text for text in found), found


@pytest.mark.parametrize(
    "compute", [lambda y: torch.add(y, y, out=y), lambda y: torch.clamp(y, 0, 1, out=y)]
)
def test_a_result_written_into_a_tensor_is_refused(compute):
    with pytest.raises(TraceError, match=r"writes into another tensor \(out=\)"):
        PTCFxModule(Calls(compute), qconfig_type="WC8SYMP2_AT8SYMP2")


# ---- every argument has a sample ----------------------------------------------------------------


def row_called(node, part):
    """Row of the called function, method or module, whatever the arguments make of it."""
    called = operation_of(node)
    if node.op == "call_module":
        called = operation_of_module(part)
    elif called.name in ("unknown", "maximum") or called.name.endswith("_with_indices"):
        find = operation_of_method if node.op == "call_method" else operation_of_function
        called = find(node.target)
    return operation_of(node) if operation_of(node).name in VARIANTS else called


# Rows that other rows' arguments lead to.
VARIANTS = ("resize_nearest", "resize_cubic", "pad_from_inside")


@pytest.fixture(scope="module")
def given():
    """For each row and parameter, the values of all samples that are not the default."""
    found = {}
    for axes in AXES:
        samples = {name: s for name, s in SAMPLES.items() if axes_of(name) == axes}
        graph = capture(Bank(axes, samples))
        for node in graph_of(graph).nodes:
            part = module_of(graph, node)
            row = (
                None if node.op in ("placeholder", "output", "get_attr") else row_called(node, part)
            )
            if row is None or not str(node.meta["owner"]).startswith("samples."):
                continue
            for name, value in arguments(node).items() if row.parameters else ():
                if isinstance(value, fx.Node) or value != row.parameters[name]:
                    found.setdefault((row.name, name), []).append(value)
    return found


# A CPU has one device; torch takes the next two with other modes only; other modes are another row;
# results that are written into tensors are refused.
WITHOUT_EFFECT = {
    ("to_device", "device"), ("to_device", "non_blocking"), ("resize_nearest", "align_corners"),
    ("resize_nearest", "antialias"), ("pad", "mode"), ("normalize", "out"),
    ("norm", "out"), ("pad_with_value", "mode"),
}  # fmt: skip


@pytest.mark.parametrize(
    "row",  # a call is a padding below when it is prepared, and one with a value before
    [r for r in OPERATIONS.values() if r.parameters and r is not PAD_BELOW],
    ids=lambda r: r.name,
)
def test_every_parameter_of_a_row_has_a_sample(row, given):
    names = {name for name in row.parameters if (row.name, name) not in WITHOUT_EFFECT}
    assert {name for name in names if (row.name, name) not in given} == set()


# Arguments of modules that are no parameters of their rows, and where they are read.
READ_ELSEWHERE = {
    **dict.fromkeys(("in_channels", "out_channels", "in_features", "out_features"), "weight"),
    **dict.fromkeys(("num_features", "affine", "eps", "momentum", "process_group"), "batch norm"),
    "num_channels": "weight",
    **dict.fromkeys(("num_parameters", "init"), "weight"),
    **dict.fromkeys(("device", "dtype"), "parameters"),
    **dict.fromkeys(("p", "inplace", "operation"), "training"),
    "padding_mode": "the module's own convolution",
    "unflattened_size": "attributes",
    "min_value": "attributes",
    "max_value": "attributes",
    "kernel_size": "weight",
    "bias": "bias",
    "elementwise_affine": "weight",
    "track_running_stats": "variant",
}
MODULES = [t for t, row in registry._BY_MODULE.items() if row.parameters]


@pytest.mark.parametrize("module_type", MODULES, ids=lambda t: t.__name__)
def test_every_argument_of_a_module_is_one_of_its_row_or_read_elsewhere(module_type):
    row = registry._BY_MODULE[module_type]
    names = list(inspect.signature(module_type.__init__).parameters)[1:]
    known = {*row.parameters, *row.attributes.values(), *READ_ELSEWHERE, "args", "kwargs"}
    assert set(names) - known == set()
