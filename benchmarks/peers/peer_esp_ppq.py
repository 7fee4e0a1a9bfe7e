"""ESP-PPQ for a chip: esp32p4 has a power of two per channel, esp32s3 one per tensor.

The second option ``trained`` adds its training of thresholds, by its defaults.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from driver import Run, drive
from esp_ppq import QuantizationSettingFactory
from esp_ppq.api import espdl_quantize_onnx
from esp_ppq.executor import TorchExecutor


def quantize(folder: Path, calibration: np.ndarray, chip: str, trained: str = "") -> Run:
    """Quantize with all calibration images, one at a time as it demands."""
    setting = QuantizationSettingFactory.espdl_setting()
    setting.tqt_optimization = trained == "trained"
    images = list(torch.from_numpy(calibration).split(1))
    with TemporaryDirectory() as made:
        model = shutil.copy(folder / "model.onnx", made)  # it is simplified in place
        graph = espdl_quantize_onnx(
            model,
            f"{made}/model.espdl",
            images,
            len(images),
            list(images[0].shape),
            target=chip,
            setting=setting,
            error_report=False,
            skip_export=True,
        )
    executor = TorchExecutor(graph, device="cpu")
    return lambda image: executor(torch.from_numpy(image))[0].detach().numpy()


if __name__ == "__main__":
    drive(quantize)
