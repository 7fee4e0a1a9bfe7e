"""NNCF's post-training quantization of an ONNX model, by its defaults."""

from __future__ import annotations

from pathlib import Path

import nncf
import numpy as np
import onnx
from driver import Run, drive, onnx_run


def quantize(folder: Path, calibration: np.ndarray) -> Run:
    """Quantize with all calibration images."""
    images = nncf.Dataset(calibration, lambda image: {"images": image[None]})
    model = onnx.load(folder / "model.onnx")
    quantized = nncf.quantize(model, images, subset_size=len(calibration))
    return onnx_run(quantized.SerializeToString())


if __name__ == "__main__":
    drive(quantize)
