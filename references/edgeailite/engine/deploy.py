"""From a trained model to files: ONNX, the quantization report, and the bit-for-bit comparison."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from edgeailite.files.atomic import write_atomically
from edgeailite.quantization.export.proto import drop_traces
from edgeailite.quantization.report import Report, build_report, write_html
from edgeailite.quantization.verify import verify
from references.edgeailite.engine.loops import Task
from references.edgeailite.engine.model import example_input
from references.edgeailite.engine.options import Options
from references.edgeailite.engine.recorder import Recorder
from references.edgeailite.engine.run_folder import write_json, write_text

logger = logging.getLogger("edgeailite.deploy")

LoadImages = Callable[[], Iterator[Tensor]]

OPSET_VERSION = 18
# Images that a report is measured on: as many as have these pixels, but at least and most so many.
REPORT_PIXELS = 64 * 224 * 224
REPORT_IMAGES = (4, 64)
ONNX_FILE = "model.onnx"


def finish(
    options: Options, model: nn.Module, task: Task, images: LoadImages, recorder: Recorder
) -> None:
    """Export the last model, report on it, and compare it with ONNX Runtime if asked to.

    Args:
        options: Of the run.
        model: Float model or wrapper; it ends on the CPU, in evaluation mode.
        task: Its validation is repeated in ONNX Runtime.
        images: Begins to go through the validation images, in batches (N, C, H, W).
        recorder: Gets the results.
    """
    model.eval().cpu()
    path = recorder.folder / ONNX_FILE
    if options.quantize:
        title = f"{options.model_name}, {options.phase}"
        recorder.report(write_report(model, recorder.folder, title, images()))
    if options.save_onnx or options.verify:
        export_onnx(model, example_input(options), path, quantized=bool(options.quantize))
        recorder.set(onnx_bytes=path.stat().st_size)
    if options.verify:
        recorder.set(verify=verify_onnx(model, images(), path))
        cpu = torch.device("cpu")
        recorder.set(onnx=task.validate(onnx_forward(path), cpu, nullcontext))


def export_onnx(model: nn.Module, example_input: Tensor, path: Path, *, quantized: bool) -> None:
    """Write an ONNX file with a dynamic batch size, input ``input``, output ``output``.

    Args:
        model: A float model, or a quantization wrapper; in evaluation mode.
        example_input: One image (1, C, H, W), on the model's device.
        path: File to write; it appears whole or not at all.
        quantized: `model` is a wrapper: write integers with QuantizeLinear/DequantizeLinear.
    """
    names = {"input_names": ["input"], "output_names": ["output"], "opset_version": OPSET_VERSION}
    if quantized:
        model.export(example_input, path, format="QDQ_MODEL", dynamic_batch=True, **names)
    else:
        with write_atomically(path) as temporary:
            _export_float(model, example_input, temporary, names)
    logger.info("wrote %s (%d bytes)", path, path.stat().st_size)


def _export_float(
    model: nn.Module, example_input: Tensor, path: Path, names: dict[str, Any]
) -> None:
    # Two images: torch.export takes a dimension of 1 for a constant.
    images = example_input.repeat(2, 1, 1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter, about its own internals
        torch.onnx.export(
            model,
            (images,),
            str(path),
            dynamo=True,
            external_data=False,
            verbose=False,
            dynamic_shapes=({0: "batch"},),
            **names,
        )
    proto = onnx.load(str(path))
    drop_traces(proto)
    onnx.save(proto, str(path))


def onnx_forward(path: Path) -> Callable[[Tensor], Tensor]:
    """Make a function of the ONNX file: images (N, C, H, W) to outputs, on the CPU."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.cpu().numpy()})[0])


def write_report(wrapper: nn.Module, folder: Path, title: str, batches: Iterable[Tensor]) -> Report:
    """Write what was quantized, how well, and what was not: ``report.txt``, ``.json``, ``.html``.

    Args:
        wrapper: In evaluation mode.
        folder: Where the files go.
        title: What stands above the HTML page.
        batches: Images (N, C, H, W), of which the first are measured on.
    """
    report = build_report(wrapper, first_images(batches))
    write_text(folder / "report.txt", f"{report}\n")
    write_json(folder / "report.json", report.to_dict())
    write_html(report, folder / "report.html", title)
    logger.info("report: %s", folder / "report.html")
    return report


def first_images(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The first images (N, C, H, W) of a loader, so many that a measurement takes seconds."""
    fewest, count = REPORT_IMAGES
    for images in batches:
        height, width = images.shape[-2:]
        count = min(count, max(fewest, REPORT_PIXELS // (height * width)))
        yield images[:count]
        count -= len(images)
        if count <= 0:
            return


def verify_onnx(wrapper: nn.Module, batches: Any, path: Path) -> dict[str, Any]:
    """Compare simulation, integer graph and ONNX Runtime on `batches`; log the comparison.

    Returns:
        ``num_values`` compared, ``mismatches`` per pair, and ``max_steps``, the largest difference
        in steps of the output's grid.
    """
    comparison = verify(wrapper, batches, path)
    logger.info("%s", comparison)
    return {
        "num_values": comparison.num_values,
        "mismatches": dict(comparison.mismatches),
        "max_steps": comparison.max_steps,
    }
