r"""Networks of five libraries: captured, compared with the original, trained, exported, verified.

    pip install --no-deps timm ultralytics segmentation-models-pytorch transformers \
        huggingface_hub safetensors tokenizers regex pyyaml requests httpx2 httpcore2 idna h11 \
        truststore
    python benchmarks/capture_sweep.py --json sweep.json
    python benchmarks/capture_sweep.py --json sweep.json --only 'timm/*' --shard 1/2
    python benchmarks/capture_sweep.py --capture_only

The libraries are installed for this benchmark only (``--no-deps``: none of them may replace torch);
one that is missing is skipped. Per network, with random weights, on noise:

- the wrapper without quantization (``DISABLED``) against the original model: outputs in both modes,
  batch norm statistics of a training forward, which parameters get a gradient, and its values;
- unless ``--capture_only``, a quantizing wrapper: one training step, calibrated, converted,
  exported, and compared value by value with the integer graph and ONNX Runtime.

Each network runs in a process of its own, with limits of time and memory. A run that was stopped
goes on with what is not in the JSON file yet; with nothing left to do it prints the table again.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import fnmatch
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from capture_networks import LIBRARIES, TIMM_FAMILIES, Network, list_networks, timm_modules
from torch import Tensor, nn
from tqdm import tqdm

from edgeailite.quantization import QATFxModule
from edgeailite.quantization.graph.model import program_of
from edgeailite.quantization.report.reasons import float_operations
from edgeailite.quantization.verify import verify

BATCH_SIZE = 2
# Differences up to here, relative to the largest value, are those of another order of summation.
ROUNDING = 1e-5
# A parameter whose values are all smaller is one that a new network starts at zero.
NEARLY_ZERO = 1e-3


FLOAT_STAGES = {"capture", "evaluation", "training", "statistics", "gradients"}


@dataclass
class Row:
    """What was found for one network; None: not reached.

    Attributes:
        name: ``library/...``.
        params: Number of parameters.
        side: Side of the square input.
        way: ``torch.fx`` or ``torch.export``; empty: not captured.
        seconds: Of wrapping.
        evaluation: Largest difference of an output to the original's, evaluation mode, relative to
            the largest value.
        training: The same in training mode.
        statistics: The same of the buffers after a training forward.
        gradient_values: The same of the gradients.
        gradients: Parameters with a gradient on one side only.
        step: Loss of the quantized network's training step.
        floats: Reasons of operations that stay in float, by the operation's name.
        values: Output values compared with ONNX Runtime.
        mismatches: Values that differ: simulation and integer graph, integer graph and ONNX
            Runtime without and with optimizations.
        max_steps: Largest of these differences in steps of the output's grid.
        warning: First line of the first warning of capturing.
        errors: First line of the error of each stage that failed.
        skipped: Reason for which the network was left out.
        total_seconds: Of everything.
        peak_mb: Memory.
    """

    name: str
    params: int = 0
    side: int = 0
    way: str = ""
    seconds: float | None = None
    evaluation: float | None = None
    training: float | None = None
    statistics: float | None = None
    gradient_values: float | None = None
    gradients: list[str] | None = None
    step: float | None = None
    floats: dict[str, str] = field(default_factory=dict)
    values: int | None = None
    mismatches: list[int] | None = None
    max_steps: int | None = None
    warning: str = ""
    errors: dict[str, str] = field(default_factory=dict)
    skipped: str = ""
    total_seconds: float = 0.0
    peak_mb: float = 0.0

    def is_same(self, tolerance: float = 0.0) -> bool:
        """Return True if the captured network is the original, in both modes."""
        found = (self.evaluation, self.training, self.statistics, self.gradient_values)
        if self.gradients != [] or self.errors.keys() & FLOAT_STAGES:
            return False
        return all(value is not None and value <= tolerance for value in found)

    @property
    def is_different(self) -> bool:
        """True if wrapping succeeded and the result is another network, with a warning or not."""
        return bool(self.way) and not self.is_same(ROUNDING)

    @property
    def is_exact(self) -> bool:
        """True if simulation, integer graph and ONNX Runtime agree in every value."""
        return bool(self.values) and self.mismatches is not None and not any(self.mismatches)


class Stages:
    """Run the stages of a row; an error of one is noted, and what is known so far is reported."""

    def __init__(self, row: Row, report: Callable[[Row], None]) -> None:
        self.row, self.report, self.start = row, report, time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """One stage."""
        try:
            yield
        except Exception as error:
            self.row.errors[name] = f"{type(error).__name__}: {first_line(error)}"
        self.row.total_seconds = time.perf_counter() - self.start
        self.row.peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self.report(self.row)


def first_line(message: object) -> str:
    """First line of a message, at most 600 characters."""
    return next(iter(str(message).strip().splitlines()), "")[:600]


def tensors(output: Any, path: str = "output") -> dict[str, Tensor]:
    """All tensors of a model's output by their place in it."""
    if isinstance(output, Tensor):
        return {path: output}
    if isinstance(output, Mapping):
        items: Any = output.items()
    elif isinstance(output, tuple | list):
        items = enumerate(output)
    elif dataclasses.is_dataclass(output):
        items = vars(output).items()
    else:
        return {}
    return {k: t for key, item in items for k, t in tensors(item, f"{path}.{key}").items()}


def loss_of(output: Any) -> Tensor:
    """Mean square of all floating-point outputs."""
    found = [t for t in tensors(output).values() if t.is_floating_point() and t.requires_grad]
    return torch.stack([t.float().square().mean() for t in found]).sum()


def difference(expected: Mapping[str, Tensor], actual: Mapping[str, Tensor]) -> float:
    """Largest difference of two sets of tensors, relative to the largest value; NaN equals NaN.

    Raises:
        ValueError: They differ in their names or shapes.
    """
    shapes = [{n: tuple(t.shape) for n, t in side.items()} for side in (expected, actual)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{_some(shapes[1])} instead of {_some(shapes[0])}")
    distance = largest = 0.0
    for name, a in expected.items():
        a, b = a.detach().double(), actual[name].detach().double()
        if a.numel():
            apart = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs())
            distance = max(distance, float(apart.nan_to_num(nan=torch.inf).max()))
            largest = max(largest, float(a.abs().nan_to_num(posinf=0.0).max()))
    return distance / largest if distance else 0.0


def _some(shapes: Mapping[str, tuple[int, ...]]) -> str:
    listed = [f"{name} {shape}" for name, shape in shapes.items()]
    more = f" and {len(listed) - 4} more" if len(listed) > 4 else ""
    return f"({', '.join(listed[:4])}{more})"


@torch.no_grad()
def revive(model: nn.Module) -> None:
    """Give values to what a new network starts at zero: heads, last batch norms, layer scales."""
    for parameter in model.parameters():
        if parameter.is_floating_point() and float(parameter.abs().max()) < NEARLY_ZERO:
            nn.init.normal_(parameter, std=0.1)
    for module in batch_norms(model):
        if module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)


@torch.no_grad()
def warm_up(model: nn.Module, x: Tensor) -> None:
    """Batch norm statistics of the noise: with those of a new network the signal dies."""
    norms = [m for m in batch_norms(model) if m.track_running_stats]
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.train().momentum = None
    for batch in (x, torch.randn_like(x)) if norms else ():
        model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """All batch norms of a model."""
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def find_side(model: nn.Module, sides: tuple[int, ...]) -> int:
    """The first side that the model takes in both modes; raises the last side's error."""
    for side in sides:
        try:
            with torch.no_grad():
                x = torch.randn(BATCH_SIZE, 3, side, side)
                copy.deepcopy(model).train()(x.clone())
                model.eval()(x)
            return side
        except Exception:
            if side == sides[-1]:
                raise
    raise ValueError("no side was given")


def wrap(model: nn.Module, x: Tensor, qconfig_type: str) -> QATFxModule:
    """A wrapper around a copy of the model, whose batch norms learn throughout."""
    return QATFxModule(
        copy.deepcopy(model),
        qconfig_type=qconfig_type,
        example_inputs=x.clone(),
        total_epochs=4,
        num_batch_norm_update_epochs=False,
        verbose=False,
    )


def run_seeded(model: nn.Module, x: Tensor, training: bool) -> Any:
    """Output in one mode, always with the same random numbers."""
    model.train(training)
    torch.manual_seed(1)
    with torch.set_grad_enabled(training):
        return model(x.clone())


def compare_float(stages: Stages, model: nn.Module, x: Tensor) -> None:
    """Fill in how the captured network differs from the original."""
    row, original = stages.row, copy.deepcopy(model)
    captured: QATFxModule | None = None
    with stages.stage("capture"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        captured = wrap(model, x, "DISABLED")
        row.way = program_of(captured.module).way
        said = [first_line(w.message) for w in caught if issubclass(w.category, UserWarning)]
        row.warning = next(iter(said), "")
    if captured is None:
        return
    with stages.stage("evaluation"):
        outputs = [run_seeded(m, x, training=False) for m in (original, captured)]
        row.evaluation = difference(*map(tensors, outputs))
        kinds = [type(output).__name__.replace("OrderedDict", "dict") for output in outputs]
        if kinds[0] != kinds[1]:
            raise TypeError(f"the result is a {kinds[1]} instead of a {kinds[0]}")
    with stages.stage("training"):
        outputs = [run_seeded(m, x, training=True) for m in (original, captured)]
        row.training = difference(*map(tensors, outputs))
    with stages.stage("statistics"):
        row.statistics = difference(
            dict(original.named_buffers()),
            {n: b for n, b in captured.module.named_buffers() if n in dict(model.named_buffers())},
        )
    if "training" in row.errors:
        return
    with stages.stage("gradients"):
        gradients = []
        for module, output in zip((original, captured.module), outputs, strict=True):
            loss_of(output).backward()
            gradients.append(
                {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
            )
        row.gradients = sorted(gradients[0].keys() ^ gradients[1].keys())
        common = gradients[0].keys() & gradients[1].keys()
        row.gradient_values = difference(*({n: side[n] for n in common} for side in gradients))


def quantize(stages: Stages, model: nn.Module, x: Tensor, qconfig_type: str) -> None:
    """Fill in how far the quantized network gets."""
    row = stages.row
    with stages.stage("wrap"):
        start = time.perf_counter()
        wrapper = wrap(model, x, qconfig_type)
        row.seconds = time.perf_counter() - start
    if "wrap" in row.errors:
        return
    with stages.stage("step"):
        row.step = train_one_step(wrapper, x)
    with stages.stage("calibrate"):
        wrapper.calibrate([x, torch.randn_like(x)])
    if "calibrate" in row.errors:
        return
    entries = float_operations(wrapper.module).values()
    row.floats = {entry.operation: entry.reason for entry in entries}
    with stages.stage("convert"):
        converted = wrapper.convert()
    if "convert" in row.errors:
        return
    with tempfile.TemporaryDirectory() as folder:
        with stages.stage("export"):
            path = converted.export(x, Path(folder) / "model.onnx")
        if "export" in row.errors:
            return
        with stages.stage("verify"):
            found = verify(wrapper, [x, torch.randn_like(x)], path)
            row.values, row.max_steps = found.num_values, found.max_steps
            row.mismatches = list(found.mismatches.values())


def train_one_step(wrapper: QATFxModule, x: Tensor) -> float:
    """One step of SGD towards small outputs; returns the loss.

    Gradients are clipped: the layer norm of a vector that is constant on its grid, as a new class
    token of small values, has one of ``1 / sqrt(eps)``.

    Raises:
        ValueError: The loss is NaN or infinite.
    """
    wrapper.train()
    trained = [p for p in wrapper.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-5)
    loss = loss_of(wrapper(x))
    loss.backward()
    nn.utils.clip_grad_norm_(trained, 1.0, error_if_nonfinite=True)
    optimizer.step()
    if not loss.isfinite():
        raise ValueError(f"the loss is {float(loss.detach())}")
    return float(loss.detach())


def sweep_one(
    name: str, network: Network, args: argparse.Namespace, report: Callable[[Row], None]
) -> None:
    """Take one network through all stages."""
    row = Row(name)
    stages = Stages(row, report)
    torch.manual_seed(0)
    with stages.stage("create"):
        model = network.make()
        row.params = sum(p.numel() for p in model.parameters())
        if row.params > args.max_params * 1e6:
            row.skipped = f"{row.params / 1e6:.0f} M parameters, more than {args.max_params:g} M"
            return
        row.side = find_side(model, network.sides())
        x = torch.randn(BATCH_SIZE, 3, row.side, row.side)
        revive(model)
        warm_up(model, x)
    if row.errors or row.skipped:
        return
    compare_float(stages, model, x)
    if row.way and not args.capture_only:
        quantize(stages, model, x, args.qconfig_type)


def in_own_process(name: str, args: argparse.Namespace) -> Row:
    """:func:`sweep_one` in a process of its own: what it reported last."""
    command = [sys.executable, __file__, "--child", name, "--qconfig_type", args.qconfig_type]
    command += ["--max_params", str(args.max_params), "--memory_gb", str(args.memory_gb)]
    command += ["--threads", str(args.threads), *["--capture_only"] * args.capture_only]
    offline = {"HF_HUB_OFFLINE": "1", "YOLO_OFFLINE": "true", "OMP_NUM_THREADS": str(args.threads)}
    end, printed, errors = "", "", ""
    with tempfile.TemporaryDirectory() as settings:
        environment = {**os.environ, **offline, "YOLO_CONFIG_DIR": settings}
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        try:
            printed, errors = child.communicate(timeout=args.timeout)
        except subprocess.TimeoutExpired:
            child.kill()
            printed, errors = child.communicate()
            end = f"took more than {args.timeout} s"
    rows = [line for line in printed.splitlines() if line.startswith("{")]
    row = Row(**json.loads(rows[-1])) if rows else Row(name)
    if not end and child.returncode:
        last = next(iter(reversed(errors.strip().splitlines())), "")
        end = f"exit status {child.returncode}: {last}"
    if end:
        row.errors["process"] = end[:600]
    return row


def run_child(args: argparse.Namespace) -> None:
    """Sweep one network in this process; print what is known after each stage."""
    limit = int(args.memory_gb * (1 << 30))
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    torch.set_num_threads(args.threads)
    out = sys.stdout
    with redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = list_networks(args.child.partition("/")[0])[args.child]
        sweep_one(
            args.child,
            network,
            args,
            lambda row: print(json.dumps(asdict(row)), file=out, flush=True),
        )


def chosen_networks(args: argparse.Namespace) -> list[str]:
    """Names that ``--only`` and ``--shard`` leave; a library that is missing is named."""
    names = []
    for library in LIBRARIES:
        try:
            with redirect_stdout(sys.stderr):
                names += list(list_networks(library))
        except ImportError as error:
            print(f"skipped: {library} cannot be imported ({error}); --help says how to install it")
    names = [n for n in names if any(fnmatch.fnmatch(n, pattern) for pattern in args.only)]
    index, count = map(int, args.shard.split("/"))
    return names[index - 1 :: count]


def warn_of_new_families() -> None:
    """Name the families of the installed timm that the table of networks lacks."""
    try:
        lacking = sorted(timm_modules() - set(TIMM_FAMILIES))
    except ImportError:
        return
    if lacking:
        print(f"not swept, new in this timm: {', '.join(lacking)}")


def run_all(names: list[str], args: argparse.Namespace) -> list[Row]:
    """Sweep what the JSON file does not hold yet, and write it after each network."""
    rows: dict[str, Row] = {}
    if args.json is not None and args.json.is_file():
        rows = {r["name"]: Row(**r) for r in json.loads(args.json.read_text())}
    bar = tqdm([n for n in names if n not in rows], disable=None)
    for name in bar:
        bar.set_description(name)
        rows[name] = in_own_process(name, args)
        if args.json is not None:
            args.json.write_text(json.dumps([asdict(r) for r in rows.values()], indent=1))
    return [rows[name] for name in names]


COLUMNS = (
    "network", "M params", "px", "way", "s", "evaluation", "training", "statistics", "gradients",
    "step", "in float", "values that differ", "first error or warning",
)  # fmt: skip


def print_table(rows: list[Row]) -> None:
    """The rows as Markdown."""
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for row in rows:
        stage, error = next(iter(row.errors.items()), ("", ""))
        error = re.sub(r"\S*site-packages/", "", error)
        error = f"{stage}: {error}"[:200] if error else row.skipped or row.warning[:200]
        differ = ""
        if row.mismatches is not None:
            differ = f"{' / '.join(map(str, row.mismatches))} of {row.values}"
        cells = (
            row.name, f"{row.params / 1e6:.1f}", row.side or "", row.way or "none",
            _number(row.seconds), _number(row.evaluation), _number(row.training),
            _number(row.statistics), _gradients(row), _number(row.step),
            ", ".join(row.floats), differ, error.replace("|", "\\|"),
        )  # fmt: skip
        print(f"| {' | '.join(map(str, cells))} |")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _gradients(row: Row) -> str:
    if row.gradients is None:
        return ""
    return f"{len(row.gradients)} sets differ" if row.gradients else _number(row.gradient_values)


def print_summary(rows: list[Row]) -> None:
    """Counts of each library, and the names of what fails."""
    print(
        "\n| library | networks | skipped | captured | difference 0.0 "
        "| last bits differ | different | exported | nothing in float | equal in every value |\n"
        "|---|---|---|---|---|---|---|---|---|---|"
    )
    for library in LIBRARIES:
        found = [r for r in rows if r.name.partition("/")[0] == library]
        if not found:
            continue
        tried = [r for r in found if not r.skipped]
        counts = (
            len(tried), len(found) - len(tried), sum(bool(r.way) for r in tried),
            sum(r.is_same() for r in tried),
            sum(r.is_same(ROUNDING) and not r.is_same() for r in tried),
            sum(r.is_different for r in tried), sum(r.values is not None for r in tried),
            sum(r.values is not None and not r.floats for r in tried),
            sum(r.is_exact for r in tried),
        )  # fmt: skip
        print(f"| {library} | {' | '.join(map(str, counts))} |")
    lists = {
        "skipped": [r for r in rows if r.skipped],
        "not captured": [r for r in rows if not r.way and not r.skipped],
        "different": [r for r in rows if r.is_different],
    }
    reasons = {f"{name}: {why}" for row in rows for name, why in row.floats.items()}
    print("\nin float:", *sorted(reasons), sep="\n- ")
    for title, members in lists.items():
        names = [f"{r.name} (with a warning)" if r.warning else r.name for r in members]
        print(f"\n{title}: {', '.join(names) or 'none'}")


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=["*"], help="names, or patterns of names")
    parser.add_argument("--shard", default="1/1", help="i/n: every n-th network from the i-th on")
    parser.add_argument("--json", type=Path, help="file with all rows; a run goes on from it")
    parser.add_argument(
        "--capture_only", action="store_true", help="compare with the original, quantize nothing"
    )
    parser.add_argument("--qconfig_type", default="WT8SYMP2_AT8SYMP2", help="preset of the grids")
    parser.add_argument("--max_params", type=float, default=150, help="in millions; larger: skip")
    parser.add_argument("--timeout", type=int, default=1800, help="seconds for one network")
    parser.add_argument("--memory_gb", type=float, default=12, help="of one network's process")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Sweep, print the table; 1 if a network is not captured or different."""
    args = parse()
    if args.child is not None:
        run_child(args)
        return 0
    names = chosen_networks(args)
    warn_of_new_families()
    if not names:
        print(f"error: no network matches {' '.join(args.only)}", file=sys.stderr)
        return 2
    rows = run_all(names, args)
    print(
        f"{args.qconfig_type}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"{platform.system()} {platform.machine()}, {args.threads} threads\n"
    )
    print_table(rows)
    print_summary(rows)
    return int(any(not r.skipped and (not r.way or r.is_different) for r in rows))


if __name__ == "__main__":
    sys.exit(main())
