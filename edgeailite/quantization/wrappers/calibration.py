"""Calibration of a prepared model: ranges, biases and batch norms learn from data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from edgeailite.quantization.methods.bias_correction import BiasCorrector
from edgeailite.quantization.modules.bias_fit import bias_fits, describe_coarser, describe_cut
from edgeailite.quantization.modules.pact2 import quantizers
from edgeailite.quantization.wrappers.arguments import warn_user

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel
    from edgeailite.quantization.modules.activation import FakeQuantize


def warn_of_missing_ranges(model: nn.Module) -> bool:
    """Warn if activation ranges have never seen data, and return True then."""
    missing = [name for name, q in quantizers(model).items() if not q.has_range]
    if missing:
        warn_user(
            f"{len(missing)} activation ranges have never seen data (the first: "
            f"'{missing[0]}'): outputs are clipped at placeholders. "
            "Train or calibrate first, or load a quantized checkpoint."
        )
    return bool(missing)


class EvaluationCalibration:
    """Calibration by batches that come in evaluation mode, while there is no range at all.

    Loops of earlier packages call ``eval()`` and run their calibration images. It ends with the
    next ``train()`` or ``eval()``, with a conversion or an export, and with loaded ranges.
    """

    def __init__(self) -> None:
        # Of the first quantizer, after the last batch; None: it has not begun, or has ended.
        self._last: list[float] | None = None

    def begin(self, model: nn.Module) -> bool:
        """Begin if no range has seen data and all may; return False if it does not."""
        observers = _observers(model)
        ready = all(q.observer_enabled and q.num_batches_tracked < 0 for q in observers)
        self._last = _statistics(observers[0]) if observers and ready else None
        return self._last is not None

    def end(self) -> None:
        """Let ranges rest in evaluation mode."""
        self._last = None

    def goes_on(self, model: nn.Module) -> bool:
        """Return True if the next batch is one of the calibration."""
        if self._last is not None and _statistics(_observers(model)[0]) != self._last:
            self.end()  # the ranges were loaded
        return self._last is not None

    @contextmanager
    def observing(self, model: nn.Module) -> Iterator[None]:
        """Let ranges learn from one batch."""
        observers = _observers(model)
        for quantizer in observers:
            quantizer.train()
        try:
            yield
        finally:
            for quantizer in observers:
                quantizer.eval()
        self._last = _statistics(observers[0])


def _statistics(quantizer: FakeQuantize) -> list[float]:
    return [*quantizer.clips_act.tolist(), float(quantizer.num_batches_tracked)]


def _observers(model: nn.Module) -> list[FakeQuantize]:
    return [q for q in quantizers(model).values() if q.spec.fixed_range is None]


class BiasCalibration:
    """Bias correction with each batch, that goes on after a restart and begins anew with weights.

    Args:
        model: Prepared model.
        rate: Part of the difference that one batch corrects, 0 to 1; 0: no correction. None: the
            mean over the batches, see :class:`BiasCorrector`.

    Attributes:
        rate: As given.
        corrections: Those made so far, by path.
        num_batches: Batches that they were made of.
    """

    def __init__(self, model: GraphModel, rate: float | None) -> None:
        self.rate = rate
        self.corrections: dict[str, Tensor] = {}
        self.num_batches = 0
        self._model = model
        self._corrector: BiasCorrector | None = None

    @property
    def corrects(self) -> bool:
        """False if biases stay as they are."""
        return self.rate != 0

    def restore(self, corrections: dict[str, Tensor], num_batches: int) -> None:
        """Continue from corrections of an earlier run, made of so many batches."""
        self._corrector = None
        self.corrections, self.num_batches = dict(corrections), num_batches

    def run(self, model: GraphModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one batch and correct the biases; return the quantized output.

        Args:
            model: The prepared model, or a replica of it on another device.
            args: Inputs of the model.
            kwargs: Inputs by name.
        """
        if model is not self._model:
            return self._made(model).run(args, kwargs)
        if self._corrector is not None and self._corrector.is_stale:
            self.restore({}, 0)
        if self._corrector is None:
            self._corrector = self._made(model)
            self.corrections = self._corrector.corrections
        output = self._corrector.run(args, kwargs)
        self.num_batches = self._corrector.num_batches
        return output

    def _made(self, model: GraphModel) -> BiasCorrector:
        return BiasCorrector(model, self.rate, self.corrections, self.num_batches)

    def __getstate__(self) -> dict[str, Any]:
        """Take all but what the next batch makes anew."""
        return {**self.__dict__, "_corrector": None}


class BiasNotes:
    """Says, once for a layer, that its biases do not fit."""

    def __init__(self) -> None:
        self._named: set[str] = set()

    def next(self, model: GraphModel) -> list[str]:
        """Return notes of layers whose weights are coarser for it; warn of biases that are cut."""
        fits = [fit for path, fit in bias_fits(model).items() if path not in self._named]
        self._named |= {fit.path for fit in fits}
        cut = [fit for fit in fits if fit.num_cut]
        if cut:
            warn_user(describe_cut(cut))
        coarser = [fit for fit in fits if fit.factor > 1]
        return [describe_coarser(coarser)] if coarser else []
