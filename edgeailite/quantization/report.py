"""What was quantized, what was not and why, ranges, SQNR per layer: a plain object and its renderings."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgeailite.quantization.fake_quantize import FakeQuantize, quantizers
from edgeailite.quantization.graph import GraphModel
from edgeailite.quantization.layers import QuantLayer
from edgeailite.quantization.operators import Kind
from edgeailite.quantization.spec import QuantSpec
from edgeailite.quantization.units import LayerUnit, float_arithmetic, layer_units, recorded_outputs

OUTLIER_RATIO = 64.0


@dataclass
class LayerEntry:
    """One quantized layer. SQNR in dB; ranges in real units."""

    path: str
    kind: str
    weight_spec: str
    weight_max: float
    weight_sqnr: float
    output_sqnr: float | None = None


@dataclass
class ActivationEntry:
    """One activation quantizer."""

    path: str
    spec: str
    range: tuple[float, float]
    step: float
    batches: int


@dataclass
class Report:
    """What :func:`build_report` found.

    Attributes:
        layers: Quantized layers in the order of the graph.
        activations: Activation quantizers.
        floats: Operations that stay in float: name and reason.
        warnings: What deserves a look.
    """

    layers: list[LayerEntry] = field(default_factory=list)
    activations: list[ActivationEntry] = field(default_factory=list)
    floats: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{'layer':44} {'weight':34} {'max':>9} {'w dB':>6} {'out dB':>6}"]
        for e in self.layers:
            out = "" if e.output_sqnr is None else f"{e.output_sqnr:6.1f}"
            lines.append(
                f"{e.path:44} {e.weight_spec:34} {e.weight_max:9.4f} {e.weight_sqnr:6.1f} {out:>6}"
            )
        lines.append(f"{'activation':44} {'grid':34} {'range':>22} {'step':>10}")
        for a in self.activations:
            lines.append(
                f"{a.path:44} {a.spec:34} [{a.range[0]:9.4f}, {a.range[1]:9.4f}] {a.step:10.3g}"
            )
        lines += [f"float: {name}: {reason}" for name, reason in self.floats.items()]
        lines += [f"warning: {text}" for text in self.warnings]
        return "\n".join(lines)


def sqnr(signal: Tensor, noisy: Tensor) -> float:
    """Signal to quantization noise in dB: ``10 log10(sum x^2 / sum (x - y)^2)``; infinite if equal."""
    noise = float((signal.double() - noisy.double()).square().sum())
    power = float(signal.double().square().sum())
    return math.inf if noise == 0 else 10 * math.log10(max(power, 1e-300) / noise)


def spec_words(spec: QuantSpec) -> str:
    """A spec in a few words."""
    sign = {True: "int", False: "uint", None: "int?"}[spec.signed]
    parts = [f"{sign}{spec.bit_width}", spec.granularity.replace("per_", "per-")]
    parts += ["affine"] if not spec.symmetric else []
    parts += ["power-of-two"] if spec.power_of_two else ["free scale"]
    return " ".join(parts)


def describe(model: GraphModel) -> str:
    """:func:`build_report` without data, as text."""
    return str(build_report(model))


@torch.no_grad()
def build_report(wrapper: nn.Module, batches: Iterable[Tensor] = ()) -> Report:
    """Look at a prepared model.

    Args:
        wrapper: A wrapper, or the prepared model in it.
        batches: Inputs; with some, the SQNR of each layer's output is measured too.

    Returns:
        The report.
    """
    model = wrapper if isinstance(wrapper, GraphModel) else wrapper.module
    assert isinstance(model, GraphModel)
    model.classify()
    units = layer_units(model)
    output_sqnr = _output_sqnr(model, units, batches)
    report = Report()
    for unit in units:
        weight, _, _ = unit.folded()
        quantized, _ = unit.quantized_parameters()
        report.layers.append(
            LayerEntry(
                unit.path,
                type(unit.layer).__name__,
                spec_words(unit.layer.weight_spec),
                float(weight.abs().max()),
                sqnr(weight, quantized),
                output_sqnr.get(unit.path),
            )  # fmt: skip
        )
    for path, quantizer in quantizers(model).items():
        report.activations.append(_activation_entry(path, quantizer))
    report.floats = _float_operations(model)
    report.warnings = _warnings(model, units)
    return report


def _activation_entry(path: str, quantizer: FakeQuantize) -> ActivationEntry:
    low, high = (float(v) for v in quantizer.clips_act)
    batches = int(quantizer.num_batches_tracked) + 1
    return ActivationEntry(
        path, spec_words(quantizer.spec), (low, high), float(quantizer.qparams().scale), batches
    )


def _float_operations(model: GraphModel) -> dict[str, str]:
    """Operations outside of any grid, with the reason."""
    found = {}
    for node in model.graph.nodes:
        kind = node.meta["kind"]
        name = str(node.target) if node.op == "call_module" else node.name
        if kind is Kind.FLOAT and node.op != "placeholder":
            found[name] = f"{_operation_name(model, node)} has no integer form"
        elif kind is Kind.LAYER and not isinstance(model.module_of(node), QuantLayer):
            found[name] = "no weight of its own is quantized here"
        elif kind is Kind.FORBID:
            found[name] = "NoQAct asks for float"
    return found


def _operation_name(model: GraphModel, node: Any) -> str:
    module = model.module_of(node)
    return (
        type(module).__name__
        if module is not None
        else getattr(node.target, "__name__", str(node.target))
    )


def _warnings(model: GraphModel, units: list[LayerUnit]) -> list[str]:
    texts = [f"'{p}' has never seen data" for p, q in quantizers(model).items() if not q.has_range]
    for unit in units:
        magnitudes = unit.folded().weight.abs()
        if (
            unit.layer.weight_spec.granularity == "per_tensor"
            and magnitudes.max() > OUTLIER_RATIO * magnitudes.median()
        ):
            ratio = float(magnitudes.max() / magnitudes.median().clamp_min(1e-30))
            texts.append(
                f"'{unit.path}': its largest weight is {ratio:.0f} times the median: outliers set the step. "
                "Per-channel weights (per_channel_q) or weight clipping help."
            )
    return texts


def _output_sqnr(
    model: GraphModel, units: list[LayerUnit], batches: Iterable[Tensor]
) -> dict[str, float]:
    """SQNR of each layer's output over `batches`, quantized against float pass; batch norm in evaluation mode."""
    signal: dict[str, float] = {}
    noise: dict[str, float] = {}
    training = [m for m in model.modules() if m.training]
    model.eval()
    for batch in batches:
        reference: dict[str, list[Tensor]] = {}
        with (
            float_arithmetic(model),
            recorded_outputs(units, lambda u, y: reference.setdefault(u.path, []).append(y)),
        ):
            model(batch)

        def compare(
            unit: LayerUnit, y: Tensor, reference: dict[str, list[Tensor]] = reference
        ) -> None:
            x = reference[unit.path].pop(0)
            signal[unit.path] = signal.get(unit.path, 0.0) + float(x.double().square().sum())
            noise[unit.path] = noise.get(unit.path, 0.0) + float(
                (x.double() - y.double()).square().sum()
            )

        with recorded_outputs(units, compare):
            model(batch)
    for module in training:
        module.training = True
    return {
        p: math.inf if noise[p] == 0 else 10 * math.log10(max(signal[p], 1e-300) / noise[p])
        for p in signal
    }
