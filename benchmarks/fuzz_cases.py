"""Cases of ``fuzz_exactness.py``: a network, a wrapper, data, a file; and how one is run."""

from __future__ import annotations

import random
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from fuzz_networks import Network
from torch import Tensor, nn

from edgeailite import quantization
from edgeailite.quantization import QConfigType
from edgeailite.quantization.report import build_report
from edgeailite.quantization.targets.c.reader import NoForm, Reader
from edgeailite.quantization.verify import verify
from edgeailite.quantization.verify.compare import INTEGER_ORT_PLAIN
from edgeailite.quantization.verify.notes import has_free_scales

DATA: dict[str, Callable[..., Tensor]] = {
    "normal": torch.randn,
    "positive": torch.rand,
    "ties": lambda *shape: torch.round(torch.randn(*shape) * 16) / 16,
    "outliers": lambda *shape: torch.randn(*shape) ** 3,
}
PRESETS = tuple(p for p in QConfigType.choices() if p not in ("DISABLED", "DEFAULT"))


@dataclass(frozen=True)
class Case:
    """One network on its way to a file.

    Attributes:
        network: The network.
        wrapper: Makes the wrapper of ``model``, with the example input ``x``.
        training_steps: Of the wrapper; 0: it is calibrated only.
        format: Of the file.
        opset: Of the file.
        data: Kind of the inputs, see :data:`DATA`.
        seed: Of weights and inputs.
    """

    network: Network
    wrapper: str = "PTCFxModule(model)"
    training_steps: int = 0
    format: str = "QDQ_MODEL"
    opset: int = 18
    data: str = "normal"
    seed: int = 0

    def __str__(self) -> str:
        """As ``fuzz_seeds.py`` keeps it."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "network"}
        options = ", ".join(f"{k}={v!r}" for k, v in given.items())
        return f'keep({self.network.inputs}, """\n{self.network.source}""", {options})'


@dataclass
class Outcome:
    """Findings of one case.

    Attributes:
        values: Output values that each pair was compared on.
        differences: Values that differ, by pair; pairs that are not exact by contract are left out.
        free_off: Values that differ with free scales and the optimizations of ONNX Runtime off,
            which sums floats there.
        not_in_c: Why the network has no form in C; empty: it was compared.
        floats: Operations in float with their reasons.
        levels: Different values among the outputs.
        error: Stage and message, if something was raised.
        seconds: Of all.
    """

    values: int = 0
    differences: dict[str, int] = field(default_factory=dict)
    free_off: int = 0
    not_in_c: str = ""
    floats: Counter[str] = field(default_factory=Counter)
    levels: int = 0
    error: str = ""
    seconds: float = 0.0

    @property
    def failure(self) -> str:
        """Stage of the error, or the first pair that differs; empty: all is equal.

        Where operations run in float, file and PyTorch may differ in the last bit.
        """
        if self.error:
            return self.error.partition(":")[0]
        pairs = [pair for pair, n in self.differences.items() if n]
        return next((p for p in pairs if not self.floats or "evaluation" in p), "")


def run(case: Case) -> Outcome:
    """Take a case through all stages; an error ends up in the outcome with its stage."""
    outcome, stages, start = Outcome(), ["build"], time.perf_counter()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        try:
            _run_stages(case, outcome, stages, Path(folder))
        except Exception as error:
            outcome.error = f"{stages[-1]}: {type(error).__name__}: {error}"
    outcome.seconds = time.perf_counter() - start
    return outcome


def _run_stages(case: Case, outcome: Outcome, stages: list[str], folder: Path) -> None:
    torch.manual_seed(case.seed)
    draw, network = DATA[case.data], case.network
    model = network.build()
    x = network.batch(2, draw)
    stages.append("wrap")
    names = {name: getattr(quantization, name) for name in quantization.__all__}
    wrapper = eval(case.wrapper, names, {"model": model, "x": x})
    wrapper.verbose = False
    stages.append("calibrate")
    wrapper.calibrate([network.batch(4, draw) for _ in range(2)])
    stages.append("train")
    _train(wrapper, (network.batch(4, draw) for _ in range(case.training_steps)))
    stages.append("report")
    floats = build_report(wrapper).floats.values()
    outcome.floats.update(f"{entry.operation}: {entry.reason}" for entry in floats)
    stages.append("convert")
    has_free = has_free_scales(wrapper.convert().module)
    stages.append("export")
    path = wrapper.export(x, folder / "m.onnx", format=case.format, opset_version=case.opset)
    stages.append("verify")
    batch = network.batch(3, draw)
    outcome.not_in_c = _why_not_in_c(wrapper, batch)
    found = verify(wrapper, [batch], path, () if outcome.not_in_c else ("c",))
    outcome.values, outcome.differences = found.num_values, dict(found.mismatches)
    if has_free:
        outcome.free_off = outcome.differences.pop(INTEGER_ORT_PLAIN)
    outcome.levels = max(len(y.unique()) for y in _outputs(wrapper(*batch)))


def _why_not_in_c(wrapper: nn.Module, batch: tuple[Tensor, ...]) -> str:
    """The first operation that C does not hold; empty: there is none."""
    try:
        Reader(wrapper.convert().module, batch).read()
    except NoForm as error:
        return str(error).split(": ", 1)[1].split(". Replace")[0]
    return ""


def _outputs(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def _train(wrapper: nn.Module, batches: Iterable[tuple[Tensor, ...]]) -> None:
    parameters = [p for p in wrapper.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-3) if parameters else None
    for batch in batches:
        wrapper.train()
        loss = sum(y.square().mean() for y in _outputs(wrapper(*batch)))
        if optimizer is not None and isinstance(loss, Tensor) and loss.requires_grad:
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
    wrapper.eval()


# ---- configurations -----------------------------------------------------------------------------


def random_case(rng: random.Random, network: Network) -> Case:
    """A network with a random wrapper, data and file."""
    training_steps = rng.choice([0, 0, 0, 1, 2])
    make = rng.choices([_preset, _pact2, _own], weights=(5, 3, 3))[0]
    wrapper, bits = make(rng, training_steps > 0)
    # Without an example no types are known, and the places of a max_unpool are no floats.
    if make is not _pact2 and (rng.random() < 0.5 or "unpool" in network.source):
        wrapper = wrapper.replace("(model, ", "(model, example_inputs=x, ", 1)
    return Case(
        network,
        wrapper,
        training_steps,
        rng.choice(["QDQ_MODEL", "QDQ_MODEL", "INT_MODEL"]),
        21 if bits > 8 else rng.choice([13, 17, 18, 18, 18, 21]),
        rng.choices(list(DATA), weights=(4, 1, 2, 1))[0],
        rng.randrange(1 << 30),
    )


def _preset(rng: random.Random, trains: bool) -> tuple[str, int]:
    preset = rng.choice(PRESETS)
    if trains:
        return f"QATFxModule(model, qconfig_type={preset!r}, total_epochs=4)", 8
    return f"PTCFxModule(model, qconfig_type={preset!r})", 8


def _pact2(rng: random.Random, trains: bool) -> tuple[str, int]:
    bits = rng.choice([8, 8, 8, 8, 6, 4, 16])
    options = {
        "bitwidth_weights": rng.choice([8, 8, 8, 4, 2, 6]),
        "bitwidth_activations": bits,
        "per_channel_q": rng.choice([False, True, "all"]),
        "rounding": rng.choice(["half_even", "half_even", "half_up"]),
        "constrain_bias": rng.choice([None, None, "SATURATE", "REDUCE_WEIGHT_SCALE", "NONE"]),
        "range_rule": rng.choice([None, None, "min_max", "mse"]),
        "power2_weight_range": rng.choice([None, None, False]),
        "power2_activation_range": rng.choice([None, None, False]),
        "bias_calibration": rng.random() < 0.2,
        "quantize_in": rng.random() < 0.95,
        "quantize_out": rng.random() < 0.95,
    }
    defaults = (None, False, "half_even")
    always = ("quantize_in", "quantize_out")
    given = {k: v for k, v in options.items() if (not v if k in always else v not in defaults)}
    words = "".join(f", {key}={value!r}" for key, value in given.items())
    if trains:
        return f"QuantTrainModule(model, x, total_epochs=4{words})", bits
    return f"QuantCalibrateModule(model, x{words})", bits


def _own(rng: random.Random, trains: bool) -> tuple[str, int]:
    free, bits = rng.random() < 0.5, rng.choice([8, 8, 8, 7, 5, 4, 16])
    weight = (
        f"QuantSpec({rng.choice([8, 8, 4, 5, 2])}, signed=True, "
        f"granularity={rng.choice(['per_tensor', 'per_channel'])!r}, power_of_two={not free})"
    )
    activation = (
        f"QuantSpec({bits}, symmetric={rng.random() < 0.5}, power_of_two={not free}, "
        f"rounding={rng.choice(['half_even', 'half_even', 'half_up', 'half_away'])!r}, "
        f"range_rule={rng.choice(['min_max', 'percentile', 'mse'])!r})"
    )
    qconfig = f"QConfig({weight}, {activation})"
    if trains:
        return f"QATFxModule(model, qconfig_type={qconfig}, total_epochs=4)", bits
    return f"PTCFxModule(model, qconfig_type={qconfig})", bits


# ---- shrinking ----------------------------------------------------------------------------------


def shrink(case: Case, failure: str, num_runs: int = 60) -> Case:
    """A smaller case with the same failure: outputs and lines are dropped one by one.

    Args:
        case: It fails.
        failure: As :attr:`Outcome.failure` says.
        num_runs: Cases that are tried, at most.
    """
    tried: set[str] = set()
    while num_runs > 0:
        for network in case.network.smaller():
            if network.source in tried or not network.lines or not network.outputs:
                continue
            tried.add(network.source)
            num_runs -= 1
            smaller = replace(case, network=network)
            if run(smaller).failure == failure:
                case = smaller
                break
            if num_runs <= 0:
                return case
        else:
            return case
    return case
