"""Calibration of a wrapper: batch by batch, by post-training methods, until it is good enough."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from edgeailite.quantization.graph.model import compare_first_batch, graph_of, target_of
from edgeailite.quantization.graph.running import as_batches, iterate_batches
from edgeailite.quantization.methods.batch_norm import reestimate_batch_norms
from edgeailite.quantization.methods.gains import render_gains
from edgeailite.quantization.methods.max_drop import DropResult, calibrate_until
from edgeailite.quantization.methods.post_training import methods_named, post_training
from edgeailite.quantization.modules.layer_calls import layer_calls
from edgeailite.quantization.modules.pact2 import quantizers
from edgeailite.quantization.wrappers.exporting import Exporter

if TYPE_CHECKING:
    from typing_extensions import Self

    from edgeailite.quantization.graph.model import GraphModel
    from edgeailite.quantization.methods.gains import MethodGain
    from edgeailite.quantization.methods.registry import Batches
    from edgeailite.quantization.wrappers.progress import Progress


class Calibrator(Exporter):
    """A module whose ranges and biases learn from data."""

    module: GraphModel
    trains: bool
    verbose: bool
    weights_clipped: bool
    progress: Progress
    post_training: Sequence[MethodGain] = ()
    drop_result: DropResult | None = None
    _begin: Callable[[], None]
    _say: Callable[..., None]

    def calibrate(
        self,
        data: Iterable[Any],
        num_batches: int | None = None,
        quality: str | Sequence[str] | None = None,
        max_drop: float | None = None,
        metric: Callable[[nn.Module], float] | None = None,
    ) -> Self:
        """Let ranges and biases learn from data, without gradients; ends in evaluation mode.

        Args:
            data: Batches: a tensor, or a tuple or list that begins with the model's inputs (a
                data loader's ``(images, target)`` does).
            num_batches: Number of batches to take; None: all.
            quality: None: batch by batch, as training mode does that only calibrates. ``'fast'``
                (seconds) or ``'best'`` (minutes): what brings the output nearest to float on every
                fourth image, which is held out, and never worse there than None. Or names of
                methods in the order they are to run in, which all run and stay: see
                :func:`~edgeailite.quantization.methods.methods_named`. All batches are kept in
                memory; what each method gained is printed, and in `post_training`.
            max_drop: Calibrate as far as it takes until the metric falls by no more than this:
                plainly, ``'fast'``, ``'best'``, then with 16 bits for the layers that need them
                (not for TI's NPU). How far it went is printed, and in `drop_result`.
            metric: With `max_drop`: called with a model in evaluation mode, gives a number that is
                higher the better it is. None: percentage of the classes on held-out images that are
                the float model's; needs no labels.

        Raises:
            ValueError: `data` gave no batch, there is no such quality or method, arguments exclude
                each other, or a `quality` is asked for in several processes.
            RuntimeError: The wrapper only evaluates.
        """
        self._check_calibration()
        if metric is not None and max_drop is None:
            raise ValueError("metric says what may fall by max_drop: give max_drop too.")
        if max_drop is not None:
            if quality is not None:
                raise ValueError(
                    f"max_drop tries one quality after the other, and quality is {quality!r}: give "
                    "one of them."
                )
            self._calibrate_until(data, num_batches, max_drop, metric)
        elif quality is None:
            with self._calibrating():
                feed(self, data, self._num_inputs, num_batches)
        else:
            methods_named(quality)
            self._calibrate_at_once(self._batches(data, num_batches), quality)
        return self

    def _check_calibration(self) -> None:
        """Raise where a wrapper does not calibrate."""

    @property
    def _num_inputs(self) -> int:
        return len(graph_of(self.module).find_nodes(op="placeholder"))

    def _batches(self, data: Iterable[Any], num_batches: int | None) -> list[tuple[Any, ...]]:
        """Return all batches, in memory; the model is compared with the original on the first."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise ValueError(
                "quality and max_drop judge by the images of one process, and the processes would "
                "end with different weights: calibrate in one, and load its state dict in all."
            )
        batches = as_batches(data, self._num_inputs, num_batches)
        if batches:
            compare_first_batch(self.module, batches[0], {})
        return batches

    def _calibrate_at_once(
        self, batches: list[tuple[Any, ...]], quality: str | Sequence[str]
    ) -> None:
        self._begin()
        self.eval()
        clipped = self.weights_clipped

        def calibrate(images: Iterable[Any]) -> list[str]:
            self.weights_clipped = clipped  # what was tried before is undone
            with self._silent():
                self.calibrate(images)
            return list(quantizers(self.module))

        for call in layer_calls(self.module):
            call.layer.weight_quantizer.oscillations.forget()  # methods change weights
        self.post_training = post_training(self.module, batches, quality, calibrate)
        self._say(f"post-training\n{render_gains(self.post_training)}")

    def _calibrate_until(
        self,
        data: Iterable[Any],
        num_batches: int | None,
        max_drop: float,
        metric: Callable[[nn.Module], float] | None,
    ) -> None:
        batches = self._batches(data, num_batches)
        self._begin()
        self.eval()
        clipped = self.weights_clipped

        def calibrate(images: Batches, quality: str | None) -> None:
            self.post_training, self.weights_clipped = (), clipped
            with self._silent():
                self.calibrate(images, quality=quality)

        may_widen = target_of(self.module).takes_presets
        self.drop_result = calibrate_until(
            self.module, self, batches, calibrate, max_drop, metric, may_widen
        )
        self._say(str(self.drop_result))

    @contextmanager
    def _silent(self) -> Iterator[None]:
        verbose, self.verbose = self.verbose, False
        try:
            yield
        finally:
            self.verbose = verbose

    @contextmanager
    def _calibrating(self) -> Iterator[None]:
        """Calibrate in training mode; ends in evaluation mode, at the same epoch of a training."""
        trains, self.trains = self.trains, False
        try:
            with self.progress.held() if trains else nullcontext():
                self.train()
                yield
        finally:
            self.trains = trains
            self.eval()

    def reestimate_batch_norms(self, data: Iterable[Any], num_batches: int | None = None) -> Self:
        """Measure batch norm statistics anew on the quantized network; ends in evaluation mode.

        Args:
            data: Batches, as of :meth:`calibrate`; training images.
            num_batches: Number of batches to take; None: all.

        Raises:
            ValueError: `data` gave no batch.
        """
        self.eval()
        batches = as_batches(data, self._num_inputs, num_batches)
        reestimate_batch_norms(self.module, batches)
        return self


def feed(
    forward: Callable[..., Any], data: Iterable[Any], num_inputs: int, num_batches: int | None
) -> None:
    """Run batch by batch, with a progress bar.

    Args:
        forward: Called with the inputs of each batch.
        data: Tensors, or tuples that begin with the model's inputs.
        num_inputs: Number of the model's inputs.
        num_batches: Number of batches to take; None: all.

    Raises:
        ValueError: `data` gave no batch.
    """
    shown = tqdm(data, "calibrating", total=num_batches, leave=False, disable=None)
    is_empty = True
    for batch in iterate_batches(shown, num_inputs, num_batches):
        forward(*batch)
        is_empty = False
    if is_empty:
        raise ValueError("There was no batch to calibrate with: the data is empty.")
