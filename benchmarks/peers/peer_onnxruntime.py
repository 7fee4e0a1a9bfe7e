"""ONNX Runtime's static quantizer: QDQ, per channel, behind its pre-processing."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from driver import Run, drive, onnx_run
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


class _Images(CalibrationDataReader):
    def __init__(self, images: np.ndarray) -> None:
        self._images = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self._images, None)
        return None if image is None else {"images": image[None]}


def quantize(folder: Path, calibration: np.ndarray) -> Run:
    """Quantize as its documentation does."""
    with TemporaryDirectory() as made:
        prepared, quantized = f"{made}/prepared.onnx", f"{made}/quantized.onnx"
        quant_pre_process(str(folder / "model.onnx"), prepared)
        reader = _Images(calibration)
        quantize_static(prepared, quantized, reader, QuantFormat.QDQ, per_channel=True)
        return onnx_run(quantized)


if __name__ == "__main__":
    drive(quantize)
