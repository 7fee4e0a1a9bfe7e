"""Content of a report: plain data, and its rendering as text."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeailite.quantization.methods.gains import MethodGain, render_gains

if TYPE_CHECKING:
    from edgeailite.quantization.integer.memory import MemoryEstimate


class Histogram(NamedTuple):
    """Counts of values in bins of equal width.

    Attributes:
        low: Lower edge of the first bin.
        high: Upper edge of the last bin.
        counts: Values in each bin; the first and the last bin also hold what lies beyond.
    """

    low: float
    high: float
    counts: list[int]


@dataclass
class LayerEntry:
    """One call of a quantized layer. SQNR in dB; ranges in real units.

    Attributes:
        position: Place in the order of the graph, shared with the activations.
        path: The layer's place in the module tree.
        call: Number of the call of this layer, from 1.
        kind: Type of the layer.
        weight_spec: Grid of the weight in a few words.
        weight_max: Largest magnitude of the folded weight.
        weight_sqnr: SQNR of the folded weight on its grid.
        weight_range: Smallest and largest folded weight.
        weight_limits: Ends of the grid; per channel, those of the coarsest one.
        weight_histogram: Histogram of the folded weight.
        num_weights: Number of values of the weight.
        bias_sqnr: SQNR of the folded bias on its grid; None if no bias is quantized.
        output_sqnr: SQNR of the layer's output in the quantized against the float model; None
            without data.
    """

    position: int
    path: str
    call: int
    kind: str
    weight_spec: str
    weight_max: float
    weight_sqnr: float
    weight_range: tuple[float, float]
    weight_limits: tuple[float, float]
    weight_histogram: Histogram
    num_weights: int
    bias_sqnr: float | None = None
    output_sqnr: float | None = None

    @property
    def name(self) -> str:
        """Path, with the call's number from the second on."""
        return _call_name(self.path, self.call)


@dataclass
class ActivationEntry:
    """One activation quantizer. Attributes from `values` on are None without data.

    Attributes:
        position: Place in the order of the graph, shared with the layers.
        path: The quantizer's place in the module tree.
        call: Number of the call of this quantizer, from 1.
        spec: Its grid in a few words.
        range: Its running range, before rounding to the grid.
        limits: Ends of the grid.
        scale: Scale of the grid.
        batches: Number of batches that the range has seen.
        fixed: True if the range is fixed by the configuration and needs no data.
        values: Smallest and largest float value on the report's data.
        percentile: 99.9 % of the float values have at most this magnitude.
        histogram: Histogram of the float values.
        clipped: Share of the float values outside of the grid, 0 to 1.
        grid_sqnr: SQNR of the arriving values on this grid: the error of this grid alone.
        sqnr: SQNR of the values in the quantized against the float model: all errors up to here.
    """

    position: int
    path: str
    call: int
    spec: str
    range: tuple[float, float]
    limits: tuple[float, float]
    scale: float
    batches: int
    fixed: bool = False
    values: tuple[float, float] | None = None
    percentile: float | None = None
    histogram: Histogram | None = None
    clipped: float | None = None
    grid_sqnr: float | None = None
    sqnr: float | None = None

    @property
    def name(self) -> str:
        """Path, with the call's number from the second on."""
        return _call_name(self.path, self.call)


class FloatEntry(NamedTuple):
    """An operation that stays in float: its type or function, and the reason."""

    operation: str
    reason: str


class ModelSize(NamedTuple):
    """Size of the parameters, in bytes.

    Attributes:
        float_bytes: Size of all parameters and batch norm statistics in float32.
        quantized_bytes: Size with weights and biases in their bits, the rest in float32.
    """

    float_bytes: int
    quantized_bytes: int


@dataclass
class Report:
    """Result of :func:`build_report`.

    Attributes:
        layers: Quantized layers in the order of the graph.
        activations: Activation quantizers in the order of the graph.
        floats: Operations that stay in float, by name.
        warnings: Places that need attention.
        size: Size of the parameters.
        memory: Memory of the integer graph on a microcontroller; None without data, or if there is
            no such graph (a warning says why).
        num_inputs: Number of inputs (batch elements) of the measurements.
        post_training: Effect of each post-training method that the wrapper was calibrated with.
    """

    layers: list[LayerEntry] = field(default_factory=list)
    activations: list[ActivationEntry] = field(default_factory=list)
    floats: dict[str, FloatEntry] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    size: ModelSize = field(default_factory=lambda: ModelSize(0, 0))
    num_inputs: int = 0
    memory: MemoryEstimate | None = None
    post_training: list[MethodGain] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON; an infinite SQNR becomes ``"inf"``."""
        memory = None if self.memory is None else self.memory.to_dict()
        return _plain(asdict(self) | {"memory": memory})

    def __str__(self) -> str:
        size = self.size
        lines = [
            f"parameters: {size.float_bytes} bytes in float, {size.quantized_bytes} quantized",
            f"{'layer':44} {'weight':34} {'max':>9} {'w dB':>6} {'bias':>6} {'out dB':>6}",
        ]
        for e in self.layers:
            lines.append(
                f"{e.name:44} {e.weight_spec:34} {e.weight_max:9.4f} {e.weight_sqnr:6.1f} "
                f"{_number(e.bias_sqnr, 6, 1)} {_number(e.output_sqnr, 6, 1)}"
            )
        lines.append(
            f"{'activation':44} {'grid':34} {'range':>22} {'scale':>10} {'clip %':>7} {'dB':>6}"
        )
        for a in self.activations:
            clipped = None if a.clipped is None else 100 * a.clipped
            lines.append(
                f"{a.name:44} {a.spec:34} [{a.range[0]:9.4f}, {a.range[1]:9.4f}] {a.scale:10.3g} "
                f"{_number(clipped, 7, 3)} {_number(a.sqnr, 6, 1)}"
            )
        lines += [f"float: {n}: {e.operation}: {e.reason}" for n, e in self.floats.items()]
        if self.memory is not None:
            lines += ["", str(self.memory), ""]
        if self.post_training:
            lines += ["", render_gains(self.post_training), ""]
        lines += [f"warning: {text}" for text in self.warnings]
        return "\n".join(line.rstrip() for line in lines)


def _call_name(path: str, call: int) -> str:
    return path if call == 1 else f"{path} (call {call})"


def _number(value: float | None, width: int, digits: int) -> str:
    return " " * width if value is None else f"{value:{width}.{digits}f}"


def _plain(value: Any) -> Any:
    """Turn tuples into lists or, if they have names, dictionaries, and infinity into text."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return "inf" if value == math.inf else value
