"""Result of the search for bits: a table, and a file to keep it in."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

from edgeailite.files.atomic import write_atomically


@dataclass(frozen=True)
class LayerSensitivity:
    """Cost of a layer at each bit width.

    Attributes:
        path: The layer's place in the module tree.
        num_weights: Number of values of its weight.
        errors: For each bit width, the mean squared change of the network's output with only this
            layer on its grid, relative to the output's variance.
        num_macs: Multiply-accumulates for one input.
    """

    path: str
    num_weights: int
    errors: dict[int, float]
    num_macs: int = 0

    def num_bytes(self, bits: int) -> int:
        """Return the bytes of the weight, packed."""
        return -(-self.num_weights * bits // 8)

    def mac_bits(self, bits: int) -> int:
        """Return the multiply-accumulates times the bits of the weight."""
        return self.num_macs * bits


@dataclass(frozen=True)
class MixedPrecision:
    """Bits of each layer.

    Attributes:
        chosen: Bits by path.
        sensitivities: Measured costs; empty for bits that were chosen by hand.
        metric: Metric of the model with these bits, calibrated; None if it was not evaluated.
        activations: True if the layers' outputs have these bits too, not only the weights.
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
        return "\n".join([*lines, self._totals()])

    def _totals(self) -> str:
        count = sum(layer.num_weights for layer in self.sensitivities)
        average = 8 * self.num_bytes / max(count, 1)
        metric = "" if self.metric is None else f", metric {self.metric:.4g} after calibration"
        macs = sum(layer.num_macs for layer in self.sensitivities)
        per_mac = self.mac_bits / max(macs, 1)
        return (
            f"{self.num_bytes} bytes, {average:.2f} bits on average; {self.mac_bits} MAC-bits, "
            f"{per_mac:.2f} on average{metric}"
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write as JSON; the file appears whole or not at all."""
        layers = [
            {
                "path": layer.path,
                "num_weights": layer.num_weights,
                "num_macs": layer.num_macs,
                "errors": layer.errors,
            }
            for layer in self.sensitivities
        ]
        content = {
            "bits": self.chosen,
            "activations": self.activations,
            "layers": layers,
            "metric": self.metric,
        }
        with write_atomically(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MixedPrecision:
        """Read a file that :meth:`save` wrote.

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
