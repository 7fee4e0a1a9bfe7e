"""Networks of ``fuzz_exactness.py``: text that a person can read, grown line by line."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeailite.quantization.graph.norm_along import NormAlong

SCOPE = {"torch": torch, "nn": nn, "F": F, "math": math, "NormAlong": NormAlong}
# A value of the network, per element of the batch: small, and neither dead nor exploding.
MAX_NUMEL, MIN_SPREAD, MAX_VALUE = 4096, 1e-2, 300.0
_NAMES = re.compile(r"\b[xv]\d+\b")
_PARTS = re.compile(r"\bself\.(\w+)")


@dataclass(frozen=True)
class Network:
    """A network: what its class holds, in the order of the lines.

    Attributes:
        inputs: Shapes by name (``x0``, ...), without batch.
        parts: Modules and parameters by attribute, as expressions that make them.
        lines: Expressions by the name of their value (``v0``, ...).
        outputs: Names of values.
    """

    inputs: Mapping[str, tuple[int, ...]]
    parts: Mapping[str, str] = field(default_factory=dict)
    lines: Mapping[str, str] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """The class, as Python."""
        text = ["class Network(nn.Module):", "    def __init__(self):"]
        text += ["        super().__init__()"]
        text += [f"        self.{name} = {made}" for name, made in self.parts.items()]
        text += [f"    def forward(self, {', '.join(self.inputs)}):"]
        text += [f"        {name} = {line}" for name, line in self.lines.items()]
        return "\n".join([*text, f"        return {', '.join(self.outputs)}", ""])

    @classmethod
    def read(cls, inputs: Mapping[str, tuple[int, ...]], source: str) -> Network:
        """The network of a :attr:`source`."""
        made = [re.match(r"\s+(?:self\.)?(\w+) = (.*)", line) for line in source.splitlines()]
        pairs = [match.groups() for match in made if match]
        parts = {name: text for name, text in pairs if not _NAMES.fullmatch(name)}
        lines = {name: text for name, text in pairs if _NAMES.fullmatch(name)}
        outputs = source[source.rindex("return ") + 7 :].strip().split(", ")
        return cls(inputs, parts, lines, tuple(outputs))

    def build(self) -> nn.Module:
        """An instance, with weights of torch's generator."""
        scope = dict(SCOPE)
        exec(self.source, scope)
        return revive(scope["Network"]())

    def batch(self, size: int, draw: Callable[..., Tensor] = torch.randn) -> tuple[Tensor, ...]:
        """Inputs."""
        return tuple(draw(size, *shape) for shape in self.inputs.values())

    def pruned(self) -> Network:
        """Without lines and parts that no output needs."""
        needed = set(self.outputs)
        for name, line in reversed(self.lines.items()):
            if name in needed:
                needed.update(names_in(line))
        lines = {name: line for name, line in self.lines.items() if name in needed}
        parts = {part for line in lines.values() for part in _PARTS.findall(line)}
        return replace(
            self, lines=lines, parts={p: made for p, made in self.parts.items() if p in parts}
        )

    def smaller(self) -> Iterable[Network]:
        """Networks with fewer outputs or lines, the smallest first; some of them do not run."""
        if len(self.outputs) > 1:
            yield from (replace(self, outputs=(name,)).pruned() for name in self.outputs)
        names = [*self.inputs, *self.lines]
        for name in reversed(self.lines):
            for other in names[: names.index(name)]:
                yield self.without(name, other).pruned()

    def without(self, name: str, other: str) -> Network:
        """Without the line of a name; what reads it reads another value."""
        lines = {
            key: re.sub(rf"\b{name}\b", other, line)
            for key, line in self.lines.items()
            if key != name
        }
        outputs = tuple(dict.fromkeys(other if o == name else o for o in self.outputs))
        return replace(self, lines=lines, outputs=outputs)


def names_in(line: str) -> list[str]:
    """Values that a line reads."""
    return _NAMES.findall(line)


@torch.no_grad()
def revive(model: nn.Module) -> nn.Module:
    """Give weights the spread that keeps a signal, and batch norms statistics as of a trained net.

    Some gains are negative, one channel of each batch norm is dead.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.3, 2.0)
            if module.affine:
                nn.init.uniform_(module.weight, -1.0, 1.5)
                nn.init.uniform_(module.bias, -0.3, 0.3)
                module.weight[0] = 0.0
        elif isinstance(getattr(module, "weight", None), nn.Parameter):
            if module.weight.dim() > 1:
                spread = max(module.weight[0].numel(), 1) ** -0.5
                nn.init.normal_(module.weight, std=spread)
            else:  # gains of normalizations
                nn.init.uniform_(module.weight, -1.0, 1.5)
            if getattr(module, "bias", None) is not None:
                nn.init.uniform_(module.bias, -0.3, 0.3)
    return model


class Unsuitable(Exception):
    """The network has no value that an operation could read."""


class Growth:
    """A network that grows, with the values of its lines on a batch of two.

    Args:
        rng: Decides everything.
        inputs: Shapes by name, without batch.
    """

    def __init__(self, rng: random.Random, inputs: Mapping[str, tuple[int, ...]]) -> None:
        self.rng, self.inputs = rng, dict(inputs)
        self.parts: dict[str, str] = {}
        self.lines: dict[str, str] = {}
        generator = torch.Generator().manual_seed(rng.randrange(1 << 30))
        self.values = {
            name: torch.randn(2, *shape, generator=generator) for name, shape in inputs.items()
        }
        self._made = SimpleNamespace()

    # ---- choices --------------------------------------------------------------------------------

    def chance(self, share: float) -> bool:
        """True in this share of the cases."""
        return self.rng.random() < share

    def one(self, *choices: Any) -> Any:
        """One of them."""
        return self.rng.choice(choices)

    def number(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return self.rng.randint(low, high)

    def divisor(self, number: int) -> int:
        """A divisor of a number."""
        return self.one(*(n for n in range(1, number + 1) if number % n == 0))

    def value(self, *axes: int, when: Callable[[tuple[int, ...]], bool] | None = None) -> str:
        """Name of a value with one of these numbers of axes; a late one, mostly.

        Raises:
            Unsuitable: There is none.
        """
        found = [
            name
            for name, value in self.values.items()
            if (not axes or value.dim() in axes) and (when is None or when(self.shape(name)))
        ]
        if not found:
            raise Unsuitable
        return self.rng.choice(found[-3:] if self.chance(0.8) else found)

    def image(self, smallest: int = 1) -> str:
        """Name of a value ``(N, C, H, W)``."""
        return self.value(4, when=lambda shape: min(shape[2:]) >= smallest)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a value, with batch."""
        return tuple(self.values[name].shape)

    def axis(self, name: str) -> int:
        """An axis that is not the batch, from the front or from the back."""
        axis = self.number(1, self.values[name].dim() - 1)
        return axis - self.values[name].dim() if self.chance(0.4) else axis

    # ---- lines ----------------------------------------------------------------------------------

    def part(self, made: str, prefix: str = "m") -> str:
        """Add a module, or take one of the same text once more; gives the text that names it."""
        known = [name for name, text in self.parts.items() if text == made]
        if known and self.chance(0.15):
            return f"self.{known[0]}"
        name = f"{prefix}{len(self.parts)}"
        self.parts[name] = made
        setattr(self._made, name, revive(eval(made, dict(SCOPE)).eval()) if prefix == "m" else None)
        if prefix == "p":
            setattr(self._made, name, eval(made, dict(SCOPE)))
        return f"self.{name}"

    def parameter(self, *shape: int, spread: float = 1.0, offset: float = 0.0) -> str:
        """Add a parameter; gives the text that names it."""
        shift = f" + {offset}" if offset else ""
        return self.part(f"nn.Parameter(torch.randn({shape}) * {spread}{shift})", "p")

    @torch.no_grad()
    def add(self, line: str) -> str:
        """Add a line; gives the name of its value.

        Raises:
            Unsuitable: The value is no tensor of a useful size and range.
        """
        scope = {**SCOPE, **self.values, "self": self._made}
        value = eval(line, scope)
        if value.dim() < 2 or value.shape[0] != 2 or not 1 <= value[0].numel() <= MAX_NUMEL:
            raise Unsuitable
        largest = float(value.abs().max())
        if not math.isfinite(largest) or largest > MAX_VALUE or largest < MIN_SPREAD:
            raise Unsuitable
        name = f"v{len(self.lines)}"
        self.lines[name], self.values[name] = line, value
        return name

    def attempt(self, make: Callable[[Growth], Any]) -> bool:
        """Let an operation add its lines; False, and no line, where it finds nothing to read."""
        parts, lines, values = dict(self.parts), dict(self.lines), dict(self.values)
        try:
            make(self)
        except (Unsuitable, RuntimeError, ValueError, IndexError):
            self.parts, self.lines, self.values = parts, lines, values
            return False
        return True

    def finish(self) -> Network:
        """The network: its outputs are the values that nothing reads, and sometimes another one."""
        read = {name for line in self.lines.values() for name in names_in(line)}
        outputs = [name for name in self.lines if name not in read]
        if self.chance(0.3):
            outputs.append(self.one(*self.lines))
        used = {part for line in self.lines.values() for part in _PARTS.findall(line)}
        parts = {name: made for name, made in self.parts.items() if name in used}
        return Network(self.inputs, parts, self.lines, tuple(dict.fromkeys(outputs)))
