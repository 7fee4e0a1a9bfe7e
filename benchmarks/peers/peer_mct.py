"""MCT's post-training quantization of a PyTorch module, for its default target."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from driver import Run, drive
from ptq_accuracy import NETWORKS


def quantize(folder: Path, calibration: np.ndarray) -> Run:
    """Quantize with all calibration images, 10 at a time."""
    # It imports torchvision, which imports beside a torch of another kind once edgeailite has.
    import model_compression_toolkit as mct

    model = NETWORKS[(folder / "name.txt").read_text()].make()
    model.load_state_dict(torch.load(folder / "weights.pth", weights_only=True))

    def batches() -> Iterator[list[np.ndarray]]:
        for start in range(0, len(calibration), 10):
            yield [calibration[start : start + 10]]

    quantized, _ = mct.ptq.pytorch_post_training_quantization(model.eval(), batches)

    def run(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return quantized(torch.from_numpy(images)).numpy()

    return run


if __name__ == "__main__":
    drive(quantize, batch_size=10)
