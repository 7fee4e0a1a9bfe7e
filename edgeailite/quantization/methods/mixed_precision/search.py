"""Mixed precision found by the machine: bits per layer for a size, or for an accuracy."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from edgeailite.quantization.arithmetic.spec import QuantSpec
from edgeailite.quantization.graph.running import as_batches
from edgeailite.quantization.methods.mixed_precision.sensitivity import (
    BIT_WIDTHS,
    LayerSensitivity,
    choose_bit_widths,
    layer_sensitivity,
)

NUM_STEPS = 6  # of the bisection: the size is found to 1/64 of what lies between
NUM_BATCHES = 8
TOLERANCES = {"classification": 1.0, "regression": 0.02}
_LOADER_KEYS = (
    "inputs", "targets", "criterion", "calibration_dataloader", "eval_dataloader", "example_inputs",
)  # fmt: skip
_GOAL_KEYS = (
    "auto_quantization", "task_type", "float_metric", "max_bytes",
    "autoquant_tolerance_classification", "autoquant_tolerance_regression",
)  # fmt: skip


@dataclass(frozen=True)
class MixedPrecision:
    """Bits per layer.

    Attributes:
        chosen: Bits by path.
        sensitivities: What was measured; empty for bits that were chosen by hand.
        metric: Of the model with these bits, calibrated; None where it was not evaluated.
        activations: Whether the layers' outputs have these bits too, or only the weights.
    """

    chosen: dict[str, int]
    sensitivities: tuple[LayerSensitivity, ...] = ()
    metric: float | None = None
    activations: bool = False

    @property
    def bits(self) -> dict[int, list[str]]:
        """``{bits: [module names]}``, as ``mixed_precision`` of a ``qconfig_type`` takes it."""
        found: dict[int, list[str]] = {}
        for path, bits in self.chosen.items():
            found.setdefault(bits, []).append(path)
        return found

    @property
    def num_bytes(self) -> int:
        """Bytes of all weights, packed."""
        return sum(layer.num_bytes(self.chosen[layer.path]) for layer in self.sensitivities)

    @property
    def mac_bits(self) -> int:
        """Multiply-accumulates times the bits of their weights, for one input."""
        return sum(layer.mac_bits(self.chosen[layer.path]) for layer in self.sensitivities)

    def __str__(self) -> str:
        widths = sorted({b for layer in self.sensitivities for b in layer.errors}, reverse=True)
        size = max([len(layer.path) for layer in self.sensitivities] + [5])
        head = " ".join(f"{f'error {b} bit':>12}" for b in widths)
        lines = [f"{'layer':{size}} {'weights':>8} {'MACs':>10} {'bits':>4} {'bytes':>7} {head}"]
        for layer in self.sensitivities:
            bits = self.chosen[layer.path]
            errors = " ".join(f"{layer.errors.get(b, math.nan):12.3g}" for b in widths)
            lines.append(
                f"{layer.path:{size}} {layer.num_weights:8} {layer.num_macs:10} {bits:4} "
                f"{layer.num_bytes(bits):7} {errors}"
            )
        count = sum(layer.num_weights for layer in self.sensitivities)
        average = 8 * self.num_bytes / max(count, 1)
        metric = "" if self.metric is None else f", metric {self.metric:.4g} after calibration"
        macs = sum(layer.num_macs for layer in self.sensitivities)
        per_mac = self.mac_bits / max(macs, 1)
        lines.append(
            f"{self.num_bytes} bytes, {average:.2f} bits on average; {self.mac_bits} MAC-bits, "
            f"{per_mac:.2f} on average{metric}"
        )
        return "\n".join(lines)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write as JSON; the file appears whole or not at all."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        layers = [
            {
                "path": s.path,
                "num_weights": s.num_weights,
                "num_macs": s.num_macs,
                "errors": s.errors,
            }
            for s in self.sensitivities
        ]
        content = {
            "bits": self.chosen,
            "activations": self.activations,
            "layers": layers,
            "metric": self.metric,
        }
        temporary = target.with_name(f".{target.name}.part")
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, target)  # noqa: PTH105 -- the word that says atomic
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MixedPrecision:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: The file holds something else.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            layers = tuple(
                LayerSensitivity(
                    s["path"],
                    s["num_weights"],
                    {int(b): e for b, e in s["errors"].items()},
                    s["num_macs"],
                )
                for s in content["layers"]
            )
            activations = bool(content["activations"])
            return cls(dict(content["bits"]), layers, content["metric"], activations)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{os.fspath(path)!r} holds no mixed precision ({type(error).__name__}: {error}); "
                "give a file that MixedPrecision.save wrote."
            ) from error


MakeWrapper = Callable[[nn.Module, MixedPrecision], Any]


def search_bit_widths(
    model: nn.Module,
    make_wrapper: MakeWrapper,
    data: Iterable[Any],
    *,
    max_bytes: int | None = None,
    max_mac_bits: int | None = None,
    evaluate: Callable[[Any], float] | None = None,
    min_metric: float | None = None,
    bit_widths: Sequence[int] = BIT_WIDTHS,
    weight_spec: Callable[[QuantSpec, int], QuantSpec] = QuantSpec.with_bits,
    activations: bool = False,
) -> MixedPrecision:
    """Find the bits of each layer, for a size, for MAC-bits, or for an accuracy after calibration.

    Args:
        model: Float model; not changed.
        make_wrapper: Makes a calibrating wrapper of a model and its bits (at first none).
        data: Batches to measure sensitivity and to calibrate on; of a long loader the first
            8 are taken. Not kept.
        max_bytes: A goal: what all weights may take.
        max_mac_bits: A goal, alone or together with `max_bytes`: what all multiply-accumulates
            times the bits of their weights may sum up to, for one input.
        evaluate: With `min_metric`: gives a wrapper's metric, higher is better.
        min_metric: The goal: the smallest weights with at least this metric, found by bisection.
        bit_widths: What there is to choose from.
        weight_spec: From a layer's grid to that of a bit width.
        activations: The outputs of the layers get the same bits as their weights.

    Returns:
        The choice; its text is a table.

    Raises:
        ValueError: No goal or two that exclude each other, no data, or a budget that is too small.
    """
    has_budget = max_bytes is not None or max_mac_bits is not None
    if has_budget == (min_metric is not None) or (evaluate is None) != (min_metric is None):
        raise ValueError(
            "The search needs a goal: max_bytes, max_mac_bits or both; or min_metric together with "
            "evaluate."
        )
    wrapper = make_wrapper(copy.deepcopy(model), MixedPrecision({}))
    num_inputs = len(wrapper.module.graph.find_nodes(op="placeholder"))
    batches = as_batches(data, num_inputs, NUM_BATCHES)
    if activations and batches:
        wrapper.calibrate(batches)
    measured = layer_sensitivity(
        wrapper.module, batches, bit_widths, weight_spec=weight_spec, activations=activations
    )
    layers = tuple(measured)
    if has_budget:
        chosen = choose_bit_widths(measured, max_bytes=max_bytes, max_mac_bits=max_mac_bits)
        return MixedPrecision(chosen, layers, None, activations)
    assert evaluate is not None
    assert min_metric is not None

    def metric_of(chosen: dict[str, int]) -> MixedPrecision:
        found = MixedPrecision(chosen, layers, None, activations)
        calibrated = make_wrapper(copy.deepcopy(model), found).calibrate(batches)
        return MixedPrecision(chosen, layers, float(evaluate(calibrated)), activations)

    return _smallest(measured, metric_of, min_metric)


def _smallest(
    measured: list[LayerSensitivity],
    metric_of: Callable[[dict[str, int]], MixedPrecision],
    min_metric: float,
) -> MixedPrecision:
    """Bisection between the narrowest and the widest weights."""
    sizes = [[layer.num_bytes(bits) for bits in layer.errors] for layer in measured]
    low, high = sum(map(min, sizes)), sum(map(max, sizes))
    best = metric_of(choose_bit_widths(measured, max_bytes=high))
    assert best.metric is not None
    if best.metric < min_metric:
        print(  # noqa: T201
            f"edgeailite: even the widest weights reach only {best.metric:.4g} after calibration, "
            f"not {min_metric:.4g}: they are taken. Train the model quantized to gain more."
        )
        return best
    for _ in tqdm(range(NUM_STEPS), "bit widths", leave=False, disable=None):
        middle = (low + high) // 2
        tried = metric_of(choose_bit_widths(measured, max_bytes=middle))
        assert tried.metric is not None
        if tried.metric >= min_metric:
            best, high = tried, min(middle, tried.num_bytes)
        else:
            low = middle
        if high - low <= 1:
            break
    return best


# ---- by a wrapper's qconfig_type -----------------------------------------------------------------


def apply_mixed_precision(
    qconfig_dict: Mapping[str, Any], bits: Mapping[int, Sequence[str]]
) -> dict[str, Any]:
    """A copy of a ``qconfig_type`` dict whose weights have these bits.

    Args:
        qconfig_dict: Not changed.
        bits: ``{bits: [module names]}``; 32 leaves in float.
    """
    names = {int(b): list(paths) for b, paths in bits.items()}
    weight = {**(qconfig_dict.get("weight") or {}), "mixed_precision": names}
    return {**qconfig_dict, "weight": weight}


def without_search(qconfig_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a ``qconfig_type`` dict without what only the search needs, loaders above all."""
    dropped = (*_LOADER_KEYS, *_GOAL_KEYS)
    return {key: value for key, value in qconfig_dict.items() if key not in dropped}


def search_as_told(
    model: nn.Module,
    qconfig_dict: Mapping[str, Any],
    make_wrapper: MakeWrapper,
    weight_spec: Callable[[QuantSpec, int], QuantSpec],
    bit_widths: Sequence[int],
) -> dict[str, Any]:
    """The search that a ``qconfig_type`` dict asks for; prints its table.

    Args:
        model: Float model; not changed.
        qconfig_dict: ``calibration_dataloader`` (or ``inputs``), and as goal ``max_bytes``, or
            ``eval_dataloader`` with batches ``(input, target)`` and ``task_type``
            (``'classification'``: accuracy in percent; ``'regression'``: R^2); the metric may fall
            below ``float_metric`` (measured if it is not given) by
            ``autoquant_tolerance_classification`` (1 point) or ``autoquant_tolerance_regression``
            (0.02). Not changed.
        make_wrapper: See :func:`search_bit_widths`.
        weight_spec: See :func:`search_bit_widths`.
        bit_widths: What there is to choose from.

    Returns:
        A new dict without loaders, with ``weight.mixed_precision``.

    Raises:
        ValueError: Data or goal is missing.
    """
    data = qconfig_dict.get("calibration_dataloader")
    if data is None and qconfig_dict.get("inputs") is not None:
        data = [qconfig_dict["inputs"]]
    if data is None:
        raise ValueError(
            "auto_quantization needs calibration_dataloader (or inputs): batches to measure on."
        )
    goal = _goal(model, qconfig_dict)
    found = search_bit_widths(
        model, make_wrapper, data, weight_spec=weight_spec, bit_widths=bit_widths, **goal
    )
    print(found)  # noqa: T201
    return apply_mixed_precision(without_search(qconfig_dict), found.bits)


def _goal(model: nn.Module, qconfig_dict: Mapping[str, Any]) -> dict[str, Any]:
    if qconfig_dict.get("max_bytes") is not None:
        return {"max_bytes": int(qconfig_dict["max_bytes"])}
    loader = qconfig_dict.get("eval_dataloader")
    if loader is None:
        raise ValueError(
            "auto_quantization needs a goal: max_bytes, or eval_dataloader (and task_type)."
        )
    task = "regression" if "regression" in str(qconfig_dict.get("task_type")) else "classification"
    metric = _METRICS[task]
    reference = qconfig_dict.get("float_metric")
    if reference is None:
        reference = metric(model, loader)
    elif task == "classification" and reference <= 1.0:
        reference = 100.0 * reference  # a share
    tolerance = qconfig_dict.get(f"autoquant_tolerance_{task}")
    allowed = TOLERANCES[task] if tolerance is None else float(tolerance)
    return {"evaluate": lambda w: metric(w, loader), "min_metric": reference - allowed}


@torch.no_grad()
def _outputs(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        pairs = [(model(inputs), targets) for inputs, targets, *_ in loader]
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not pairs:
        raise ValueError("There was no batch to evaluate on: eval_dataloader is empty.")
    return torch.cat([o for o, _ in pairs]), torch.cat([t for _, t in pairs])


def accuracy(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Percent of inputs whose largest output is the target's."""
    outputs, targets = _outputs(model, loader)
    return 100 * float((outputs.argmax(1) == targets).float().mean())


def r_squared(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> float:
    """``1 - sum (y - t)^2 / sum (t - mean t)^2``, the mean over the outputs."""
    outputs, targets = _outputs(model, loader)
    targets = targets.reshape(outputs.shape)
    residual = (outputs - targets).square().sum(0)
    return float((1 - residual / (targets - targets.mean(0)).square().sum(0)).mean())


_METRICS = {"classification": accuracy, "regression": r_squared}
