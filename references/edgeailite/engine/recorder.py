"""What a run found out: ``result.json`` and TensorBoard events."""

from __future__ import annotations

import logging
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from edgeailite.quantization.report import Report, add_to_tensorboard
from references.edgeailite.engine.loops import TrainingState
from references.edgeailite.engine.options import Options
from references.edgeailite.engine.run_folder import RESULT, write_json

logger = logging.getLogger("edgeailite.recorder")


class Recorder:
    """Collects results; writes them in the main process only.

    Args:
        folder: Run folder.
        options: Of the run.
        is_main: Whether to write.
    """

    def __init__(self, folder: Path, options: Options, is_main: bool) -> None:
        self.folder = folder
        self.is_main = is_main
        self.result: dict[str, Any] = {
            "phase": options.phase,
            "quantize": options.quantize,
            "quantize_method": options.quantize_method if options.quantize else None,
            "qconfig_type": options.qconfig_type,
            "model_name": options.model_name,
            "dataset_name": options.dataset_name,
            "torch": torch.__version__,
        }
        self._events: SummaryWriter | None = None
        self._epoch = 0

    def set(self, **results: Any) -> None:
        """Add results; those of a validation are logged."""
        self.result |= results
        for name, value in results.items():
            if isinstance(value, dict) and "loss" in value:
                numbers = [
                    f"{key} {number:.{4 if key == 'loss' else 2}f}"
                    for key, number in value.items()
                    if isinstance(number, float)
                ]
                logger.info("%s: %s", name, "  ".join(numbers))

    def epoch(self, state: TrainingState) -> None:
        """Write the last epoch's numbers as events; those after a resumed epoch are replaced."""
        if not self.is_main:
            return
        row = state.history[-1]
        self._epoch = int(row["epoch"])
        if self._events is None:
            self._events = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self._epoch)
        for name, value in row.items():
            if name != "epoch":
                self._events.add_scalar(name.replace("_", "/", 1), value, self._epoch)
        self._events.flush()

    def picture(self, name: str, picture: Tensor) -> None:
        """Write a picture (3, H, W), uint8, as an event of the last epoch, if this run has some."""
        if self._events is not None:
            self._events.add_image(name, picture, self._epoch)

    def report(self, report: Report) -> None:
        """Write a quantization report as events of the last epoch, if this run has some."""
        if self._events is not None:
            add_to_tensorboard(report, self._events, self._epoch)

    def finish(self) -> None:
        """Write ``result.json``; its presence says that the run is complete."""
        if self.is_main:
            write_json(self.folder / RESULT, self.result)
            logger.info("results: %s", self.folder / RESULT)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._events is not None:
            self._events.close()
