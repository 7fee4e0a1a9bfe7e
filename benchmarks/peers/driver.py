"""Shared part of the drivers: a program that quantizes the network of a folder and runs it.

    python peer_NAME.py FOLDER RESULT [OPTION ...]

``FOLDER`` holds ``model.onnx``, ``weights.pth`` and ``name.txt`` of a float network,
``calibration.npy`` and ``images.npy``, each (N, C, H, W). ``RESULT`` gets its ``logits``
(N, classes) of the latter and the ``seconds`` that quantizing took.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

Run = Callable[[np.ndarray], np.ndarray]


def drive(quantize: Callable[..., Run], batch_size: int = 1) -> None:
    """Quantize, run the images, write the result.

    Args:
        quantize: Takes the folder, the calibration images and the options of the command line;
            returns a function of images (N, C, H, W) that gives logits (N, classes).
        batch_size: Images that it takes at once.
    """
    folder, result = (Path(word) for word in sys.argv[1:3])
    calibration = np.load(folder / "calibration.npy")
    started = time.perf_counter()
    run = quantize(folder, calibration, *sys.argv[3:])
    seconds = time.perf_counter() - started
    images = np.load(folder / "images.npy", mmap_mode="r")
    starts = range(0, len(images), batch_size)
    logits = np.concatenate([run(np.array(images[i : i + batch_size])) for i in starts])
    part = result.with_suffix(".part.npz")
    np.savez(part, logits=logits, seconds=seconds)
    part.replace(result)


def onnx_run(model: str | Path | bytes) -> Run:
    """Return a function that runs an ONNX model, a path or its bytes, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]
