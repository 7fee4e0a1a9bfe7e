"""The command ``python -m edgeailite.quantization.verify``."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from edgeailite._extras import needs_extra
from edgeailite.files.atomic import write_atomically
from edgeailite.quantization.verify.compare import verify, wrapper_model
from edgeailite.quantization.verify.onnx_runtime import LEVELS, cpu_note, open_session
from edgeailite.quantization.verify.verification import Verification

with needs_extra("verify", "The command"):
    import tyro

_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm")
_BASE = "off"


@dataclass(frozen=True)
class Options:
    """Compare an ONNX file with the PyTorch model it came from, value by value.

    Exit status: 0 all values are equal, 1 some differ, 2 the input cannot be used.
    """

    onnx: Annotated[Path, tyro.conf.Positional]
    """The file, as a wrapper's export wrote it (QDQ_MODEL, TINPU_INT_MODEL)."""
    data: str
    """A folder of images, a .npy, .npz or .pt file of inputs, or 'random' (normal noise)."""
    model: str | None = None
    """'package.module:function' or 'file.py:function' that returns the wrapper or converted model.
    Without it ONNX Runtime's optimization levels are compared with each other."""
    checkpoint: Path | None = None
    """State dict to load into the model's .module."""
    num_inputs: int = 64
    """Inputs to compare on, at most."""
    batch_size: int = 16
    """Inputs of a batch."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Subtracted from each colour of an image, which is 0 to 1."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Each colour is divided by it then."""
    runtimes: tuple[str, ...] = ()
    """Further runtimes to compare with: c (the C files, compiled for this machine)."""
    json_path: Path | None = None
    """Write the result to this file as well."""


class _BadInputError(ValueError):
    """Input that cannot be used; the message gives the reason and the way out."""


def main(args: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = tyro.cli(Options, prog="python -m edgeailite.quantization.verify", args=args)
    try:
        result = _run(options)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    print(result)  # noqa: T201
    if options.json_path is not None:
        with write_atomically(options.json_path) as temporary:
            temporary.write_text(json.dumps(asdict(result), indent=1))
    return 0 if result.exact else 1


def _run(options: Options) -> Verification:
    session = open_session(options.onnx, _BASE)
    batches = _batches(options, [tuple(i.shape) for i in session.get_inputs()])
    if options.model is not None:
        model = _load_model(options.model)
        if options.checkpoint is not None:
            _load_checkpoint(model, options.checkpoint)
        return verify(model.eval(), batches, options.onnx, options.runtimes)
    if options.runtimes:
        raise _BadInputError("--runtimes are compared with a model: give --model as well.")
    if options.checkpoint is not None:
        raise _BadInputError("--checkpoint is loaded into a model: give --model as well.")
    return _compare_levels(options.onnx, batches)


def _load_model(place: str) -> torch.nn.Module:
    path, _, name = place.rpartition(":")
    if not path or not name:
        raise _BadInputError(
            f"--model is '{place}'; give package.module:function or file.py:function."
        )
    try:
        module = _load_file(Path(path)) if path.endswith(".py") else importlib.import_module(path)
        made = getattr(module, name)
    except (ImportError, AttributeError, FileNotFoundError) as error:
        raise _BadInputError(f"--model '{place}' cannot be loaded: {error}.") from error
    wrapper = made if isinstance(made, torch.nn.Module) or not callable(made) else made()
    try:
        wrapper_model(wrapper)
    except TypeError as error:
        raise _BadInputError(
            f"--model '{place}' gives a {type(wrapper).__name__}; it must give a wrapper "
            "(QATFxModule, QuantCalibrateModule, ...) or what its convert() returned."
        ) from error
    return wrapper


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _load_checkpoint(model: torch.nn.Module, path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}.")
    try:
        wrapper_model(model).load_state_dict(
            torch.load(path, map_location="cpu", weights_only=True)
        )
    except RuntimeError as error:
        raise _BadInputError(f"--checkpoint {path} does not fit the model: {error}") from error


def _compare_levels(path: Path, batches: list[tuple[Tensor, ...]]) -> Verification:
    """Compare ONNX Runtime's levels with the one without optimizations."""
    sessions = {level: open_session(path, level) for level in LEVELS}
    result = Verification(cpu_note=cpu_note())
    result.notes.append("PyTorch was not compared: give --model with what makes your wrapper")
    for inputs in batches:
        names = [i.name for i in sessions[_BASE].get_inputs()]
        feed = {n: x.numpy() for n, x in zip(names, inputs, strict=True)}
        outputs = {k: list(map(torch.from_numpy, s.run(None, feed))) for k, s in sessions.items()}
        result.num_inputs += inputs[0].shape[0]
        result.num_values += sum(y.numel() for y in outputs[_BASE])
        for level in LEVELS:
            for a, b in zip(outputs[_BASE], outputs[level], strict=True):
                if level != _BASE:
                    result.count(f"ONNX Runtime, optimizations {_BASE} vs {level}", a, b)
    return result


def _batches(options: Options, shapes: list[tuple[Any, ...]]) -> list[tuple[Tensor, ...]]:
    """Read the data in batches, and check it against the shapes that the file asks for."""
    if min(options.num_inputs, options.batch_size) < 1:
        raise _BadInputError("--num_inputs and --batch_size are 1 or more.")
    inputs = _read(options, shapes)
    if len(inputs) != len(shapes):
        raise _BadInputError(
            f"the data holds {len(inputs)} inputs, {options.onnx} has {len(shapes)}."
        )
    for given, wanted in zip(inputs, shapes, strict=True):
        fits = given.dim() == len(wanted) and all(
            not isinstance(w, int) or w == g
            for g, w in zip(given.shape[1:], wanted[1:], strict=True)
        )
        if not fits:
            raise _BadInputError(
                f"the data has shape {tuple(given.shape)}, {options.onnx} takes {list(wanted)}."
            )
    count, size = min(options.num_inputs, *(len(x) for x in inputs)), options.batch_size
    if isinstance(shapes[0][0], int):  # the file fixes its batch: whole ones only
        size = shapes[0][0]
        count -= count % size
    if count == 0:
        raise _BadInputError(f"the data holds fewer inputs than the file's batch of {size}.")
    return [tuple(x[i : min(i + size, count)] for x in inputs) for i in range(0, count, size)]


def _read(options: Options, shapes: list[tuple[Any, ...]]) -> list[Tensor]:
    if options.data == "random":
        generator = torch.Generator().manual_seed(0)
        print("data: normal noise, seed 0")  # noqa: T201
        if any(not isinstance(n, int) for shape in shapes for n in shape[1:]):
            raise _BadInputError(f"'random' needs fixed sizes; {options.onnx} takes {shapes}.")
        return [torch.randn(options.num_inputs, *s[1:], generator=generator) for s in shapes]
    path = Path(options.data)
    if path.is_dir():
        return [_read_images(path, shapes[0], options)]
    if not path.is_file():
        raise FileNotFoundError(f"--data: there is no file or folder {path}.")
    readers = {".npy": _read_npy, ".npz": _read_npz, ".pt": _read_pt}
    if path.suffix not in readers:
        raise _BadInputError(
            f"--data {path}: a folder of images, {', '.join(readers)} or 'random' can be read."
        )
    return readers[path.suffix](path)


def _read_npy(path: Path) -> list[Tensor]:
    return [torch.from_numpy(np.load(path, allow_pickle=False))]


def _read_npz(path: Path) -> list[Tensor]:
    return [torch.from_numpy(a) for a in np.load(path, allow_pickle=False).values()]


def _read_pt(path: Path) -> list[Tensor]:
    content = torch.load(path, map_location="cpu", weights_only=True)
    tensors = [content] if isinstance(content, Tensor) else list(content)
    if not all(isinstance(t, Tensor) for t in tensors):
        raise _BadInputError(f"--data {path} holds no tensor, nor a list of tensors.")
    return tensors


def _read_images(folder: Path, shape: tuple[Any, ...], options: Options) -> Tensor:
    """Read images of a folder and those below it, resized to the network's input."""
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in _IMAGES)
    if not files:
        raise _BadInputError(f"--data: no image ({', '.join(_IMAGES)}) is in {folder}.")
    if len(shape) != 4 or shape[1] != 3 or not all(isinstance(n, int) for n in shape[2:]):
        raise _BadInputError(f"images need an input (N, 3, H, W); {options.onnx} takes {shape}.")
    every = max(len(files) // options.num_inputs, 1)  # spread over the classes' folders
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (options.mean, options.std))
    images = []
    for file in files[::every][: options.num_inputs]:
        with Image.open(file) as image:
            resized = image.convert("RGB").resize((shape[3], shape[2]), Image.Resampling.BILINEAR)
            pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
            images.append((pixels / 255 - mean) / std)
    return torch.stack(images)
