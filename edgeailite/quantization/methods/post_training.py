"""Sequences of post-training methods: a quality by one word, or any methods by their names.

A quality is chosen by evidence: every fourth image is held out, and what does not bring the output
nearer to float on those is undone. Plain calibration is one of the ways, so none is worse there.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from edgeailite.quantization.arithmetic.sqnr import flat_outputs, sqnr
from edgeailite.quantization.methods.gains import MethodGain
from edgeailite.quantization.methods.images import divisible, split, spread
from edgeailite.quantization.methods.registry import KEEPING_FUNCTION, METHODS, Batches
from edgeailite.quantization.modules.layer_calls import copied_state, float_arithmetic, float_copy

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel

# Changes a model; returns the paths of what it changed.
Change = Callable[[], Collection[str]]
Calibrate = Callable[[Batches], Collection[str]]

# Name of plain calibration, batch by batch, among the methods.
PLAIN = "plain"
# Ways so near to the best one, in dB, that what is added behind them decides.
CLOSE = 3.0


@dataclass(frozen=True)
class Quality:
    """Ways to calibrate that are tried, and what is then added.

    Attributes:
        ways: Methods in the order they run in, for each way; the best one is kept.
        added: Methods that run behind it, each kept where it helps.
        images_of_ways: Images that a way learns from, at most; plain calibration excepted.
        images: Images that plain calibration and what is added learn from, at most.
        held: Images to judge by, at most.
    """

    ways: tuple[tuple[str, ...], ...]
    added: tuple[str, ...]
    images_of_ways: int = 1 << 30
    images: int = 1 << 30
    held: int = 1 << 30

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of all methods."""
        named = [name for way in self.ways for name in way]
        return tuple(dict.fromkeys([*named, *self.added]))


_WAYS = (
    (PLAIN,),
    ("activation_ranges", "biases"),
    ("equalization", "activation_ranges", "biases"),
)
QUALITIES: dict[str, Quality] = {
    "fast": Quality(_WAYS, ("least_squares",), images_of_ways=16, images=48, held=12),
    "best": Quality(_WAYS, ("least_squares", "block_tuning")),
}


def methods_named(quality: str | Sequence[str]) -> tuple[str, ...]:
    """Return the methods that a quality may use, or these methods themselves.

    Args:
        quality: A key of :data:`QUALITIES`, alone in a sequence too, or names of registered
            methods, and ``'plain'``, in the order they are to run in.

    Raises:
        ValueError: There is no such quality or method, or activations would be left without ranges.
    """
    chosen = _quality(quality)
    if chosen is not None:
        return chosen.methods
    names = (quality,) if isinstance(quality, str) else tuple(quality)
    known = (PLAIN, *METHODS)
    if not names or any(name not in known for name in names):
        raise ValueError(
            f"quality is {quality!r}; allowed: {', '.join(map(repr, QUALITIES))}, or methods: "
            f"{', '.join(map(repr, known))}."
        )
    if PLAIN not in names and "activation_ranges" not in names:
        raise ValueError(
            f"quality is {quality!r}, without 'activation_ranges' or 'plain': activations would "
            "keep the placeholders that they begin with. Add one of them."
        )
    return names


def _quality(quality: str | Sequence[str]) -> Quality | None:
    """Return the quality of this name, alone in a sequence too; None for names of methods."""
    names = (quality,) if isinstance(quality, str) else tuple(quality)
    return QUALITIES.get(names[0]) if len(names) == 1 else None


def post_training(
    model: GraphModel,
    batches: Batches,
    quality: str | Sequence[str],
    calibrate: Calibrate,
) -> list[MethodGain]:
    """Calibrate with a quality, or run methods one after the other.

    Args:
        model: Prepared model; it ends in evaluation mode, its ranges fixed.
        batches: Inputs of the model, a tuple for each batch: a few dozen images, none of which it
            will be evaluated on. Every fourth is held out.
        quality: See :func:`methods_named`. Methods that are named all run and are all kept.
        calibrate: Calibrates `model` plainly; returns the paths of its quantizers.

    Returns:
        The effect of each way and method, in the order they ran in.

    Raises:
        ValueError: There is no such quality or method, or no batch.
    """
    names, chosen = methods_named(quality), _quality(quality)
    if not batches:
        raise ValueError("There was no batch to calibrate with: the data is empty.")
    model.eval()
    learned, held = split(divisible(model, batches))
    if chosen is None:
        trials = _Trials(model, held, calibrate)
        for name in names:
            trials.run((name,), learned)
        return trials.gains
    learned, few = spread(learned, chosen.images), spread(learned, chosen.images_of_ways)
    trials = _Trials(model, spread(held, chosen.held), calibrate)
    begin = trials.state(())
    found = [trials.run(way, learned if way == (PLAIN,) else few, begin) for way in chosen.ways]
    nearest = max(state.sqnr for state in found)
    followed = [state for state in found if state.sqnr >= nearest - CLOSE]
    for name in chosen.added:
        found += [trials.run((name,), learned, state) for state in followed]
        followed = [_best(found)]
    trials.end(_best(found))
    return trials.gains


class _State(NamedTuple):
    """Model after methods.

    Attributes:
        methods: Their names.
        rows: Where their gains are.
        sqnr: SQNR of the output on held-out images.
        tensors: State dict of the model.
        reference: The model in float, where the former no longer tells it.
    """

    methods: tuple[str, ...]
    rows: tuple[int, ...]
    sqnr: float
    tensors: dict[str, Any]
    reference: GraphModel | None


def _best(states: list[_State]) -> _State:
    """Return the state whose output is nearest to float, the earliest of equal ones."""
    return max(states, key=lambda state: -math.inf if math.isnan(state.sqnr) else state.sqnr)


class _Trials:
    """Trials, and how near each brought the output to float.

    Args:
        model: Prepared model.
        held: Images to judge by.
        calibrate: Plain calibration.

    Attributes:
        gains: Of what was tried.
    """

    def __init__(self, model: GraphModel, held: Batches, calibrate: Calibrate) -> None:
        self.gains: list[MethodGain] = []
        self._model, self._held, self._calibrate = model, held, calibrate
        self._reference: GraphModel | None = None
        with torch.no_grad(), float_arithmetic(model):
            self._wanted = flat_outputs(model(*batch) for batch in held)

    def run(self, names: tuple[str, ...], batches: Batches, begin: _State | None = None) -> _State:
        """Run methods one after the other; from a state, or from the model as it is."""
        label = " + ".join((*(begin.methods if begin else ()), *names))
        changes = (path for name in names for path in self._apply(name, batches))
        state = self.measure(label, lambda: set(changes), begin)
        return state._replace(methods=(*(begin.methods if begin else ()), *names))

    def _apply(self, name: str, batches: Batches) -> list[str]:
        if name in KEEPING_FUNCTION:
            if self._reference is not None:
                raise ValueError(
                    f"'{name}' comes behind a method that changes the float function: name it "
                    "before that one."
                )
            return METHODS[name](self._model, batches)
        if self._reference is None:
            self._reference = float_copy(self._model)
        if name == PLAIN:
            return list(self._calibrate(batches))
        method: Callable[..., list[str]] = METHODS[name]
        if "reference" in inspect.signature(method).parameters:
            method = partial(method, reference=self._reference)
        return method(self._model, batches)

    def measure(self, label: str, change: Change, begin: _State | None = None) -> _State:
        """Change the model, and measure what that did."""
        if begin is not None:
            self._model.load_state_dict(begin.tensors)
            self._reference = begin.reference
        started = time.perf_counter()
        changed = change()
        seconds = time.perf_counter() - started
        with torch.no_grad():
            outputs = flat_outputs(self._model(*batch) for batch in self._held)
        found = sqnr(self._wanted, outputs)
        rows = (*(begin.rows if begin else ()), len(self.gains))
        self.gains.append(MethodGain(label, len(changed), found, seconds))
        return self.state(rows, found)

    def state(self, rows: tuple[int, ...], sqnr: float = -math.inf) -> _State:
        """Return the model as it is."""
        return _State((), rows, sqnr, copied_state(self._model), self._reference)

    def end(self, best: _State) -> None:
        """Let the model end in a state; what did not lead there is rejected."""
        self._model.load_state_dict(best.tensors)
        self.gains = [replace(g, kept=i in best.rows) for i, g in enumerate(self.gains)]
