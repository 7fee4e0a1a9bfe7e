"""Post-training accuracy on real data: top-1, agreement with float, and SQNR of the logits.

Networks and images are those of ``--data`` (what is absent is skipped): a CIFAR ResNet-20, a
MobileNetV1 of width 0.25 and a MobileNetV2. Calibration never sees an evaluated image.

    python benchmarks/ptq_accuracy.py --data FOLDER

``FOLDER/cifar10_small`` holds ``resnet20.pth``, ``train/CLASS/*.png`` and ``val/CLASS/*.png``;
``FOLDER/imagenet_samples`` holds ``mobilenet_v1_025.pth``, ``mobilenet_v2.pth``,
``calibration/*.jpg`` and ``evaluation/*.jpg``.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from edgeailite import xnn
from edgeailite.models import create_model
from edgeailite.quantization import PTCFxModule, QuantCalibrateModule, QuantModule
from edgeailite.quantization.report import sqnr
from edgeailite.quantization.verify import verify

BATCH_SIZE = 50
CIFAR10 = Path("cifar10_small")
IMAGENET = Path("imagenet_samples")
RESNET20 = CIFAR10 / "resnet20.pth"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; the shortcut subsamples and pads channels with zeros (option A)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.pad = stride, (channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Functional ReLU and add, as such code is found."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.pad:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(y + x)


class ResNet20(nn.Module):
    """The CIFAR ResNet-20 of He et al. 2015, https://arxiv.org/abs/1512.03385, section 4.2."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(BasicBlock(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(
            BasicBlock(16, 32, 2), BasicBlock(32, 32, 1), BasicBlock(32, 32, 1)
        )
        self.layer3 = nn.Sequential(
            BasicBlock(32, 64, 2), BasicBlock(64, 64, 1), BasicBlock(64, 64, 1)
        )
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 32, 32) to (N, 10)."""
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(F.avg_pool2d(x, x.size(3)).flatten(1))


@dataclass
class Task:
    """A float model with calibration and evaluation data."""

    name: str
    model: nn.Module
    calibration: list[Tensor]
    images: list[Tensor]
    labels: Tensor
    seed: int = 0

    def spread(self, count: int | None) -> Task:
        """The same with at most `count` images to evaluate, evenly spread over all."""
        images, total = torch.cat(self.images), len(self.labels)
        chosen = torch.arange(min(count or total, total)) * total // min(count or total, total)
        batches = list(images[chosen].split(BATCH_SIZE))
        return replace(self, images=batches, labels=self.labels[chosen])


def _rgb(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"), dtype=np.float32)


def _stack(paths: list[Path], prepare: Callable[[np.ndarray], Tensor]) -> Tensor:
    return torch.stack([prepare(_rgb(p)) for p in paths])


def mobilenet_v1_025() -> nn.Module:
    """The zoo's network with the activation and the batch norm of the weights."""
    model = create_model("mobilenetv1_x0p25", activation=nn.ReLU6)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3
    return model


def load_resnet20(data: Path) -> ResNet20:
    """The float network, in evaluation mode."""
    return _with_weights(ResNet20(), data / RESNET20)


def cifar10_images(folder: Path) -> tuple[Tensor, Tensor]:
    """A split of ``cifar10_small``: normalized images (N, 3, 32, 32) and class indices (N,)."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def prepare(image: np.ndarray) -> Tensor:
        return ((torch.from_numpy(image) / 255 - mean) / std).permute(2, 0, 1)

    paths = sorted(folder.glob("*/*.png"))
    labels = torch.tensor([int(p.parent.name.split("_")[0]) for p in paths])
    return _stack(paths, prepare), labels


def cifar10_task(name: str, data: Path, seed: int) -> Task:
    """CIFAR-10: 500 training images to calibrate, drawn by `seed`; all validation images."""
    root = data / CIFAR10
    train, _ = cifar10_images(root / "train")
    val, labels = cifar10_images(root / "val")
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:500]
    calibration = list(train[chosen].split(BATCH_SIZE))
    model = _with_weights(NETWORKS[name].make(), root / f"{name}.pth")
    return Task(name, model, calibration, list(val.split(BATCH_SIZE)), labels, seed)


def imagenet_task(name: str, data: Path, seed: int) -> Task:
    """ImageNet samples: 62 images of other classes to calibrate, 500 to evaluate.

    The weights need images that are rotated by 180 degrees. All 62 calibrate; a `seed` other than 0
    draws their order, and with it their batches and those held out.
    """
    root = data / IMAGENET

    def prepare(image: np.ndarray) -> Tensor:
        top, left = (image.shape[0] - 224) // 2, (image.shape[1] - 224) // 2
        crop = image[top : top + 224, left : left + 224][::-1, ::-1].copy()
        return (torch.from_numpy(crop) / 127.5 - 1).permute(2, 0, 1)

    val = sorted((root / "evaluation").glob("*.jpg"))
    labels = torch.tensor([int(p.name.split("_")[0]) for p in val])
    seen = _stack(sorted((root / "calibration").glob("*.jpg")), prepare)
    if seed:
        seen = seen[torch.randperm(len(seen), generator=torch.Generator().manual_seed(seed))]
    images = list(_stack(val, prepare).split(BATCH_SIZE))
    model = _with_weights(NETWORKS[name].make(), root / f"{name}.pth")
    return Task(name, model, list(seen.split(31)), images, labels, seed)


def _with_weights(model: nn.Module, path: Path) -> nn.Module:
    weights = torch.load(path, weights_only=True)
    xnn.utils.load_weights(model, weights, strict=True, verbose=False)
    return model.eval()


class Network(NamedTuple):
    """Float network without weights; folder of its weights and images; what reads them."""

    make: Callable[[], nn.Module]
    folder: Path
    task: Callable[[str, Path, int], Task]


NETWORKS = {
    "resnet20": Network(ResNet20, CIFAR10, cifar10_task),
    "mobilenet_v1_025": Network(mobilenet_v1_025, IMAGENET, imagenet_task),
    "mobilenet_v2": Network(partial(create_model, "mobilenetv2_tv_x1"), IMAGENET, imagenet_task),
}


def available_tasks(
    data: Path | None, networks: Sequence[str] = tuple(NETWORKS), seed: int = 0
) -> Iterator[Task]:
    """The tasks of `networks` whose images and weights are there; what is absent is said."""
    if data is None:
        print("skipped: it needs real images and weights, --data FOLDER; --help says which")
        return
    for name in networks:
        weights = NETWORKS[name].folder / f"{name}.pth"
        if (data / weights).is_file():
            yield NETWORKS[name].task(name, data, seed)
        else:
            print(f"\nskipped: no {weights} in {data}")


PACT2_SCHEMES: dict[str, dict[str, Any]] = {
    "default (W8A8 power of two, per tensor)": {},
    "simple: min/max, no bias correction": {"histogram_range": False, "bias_calibration": False},
    "advanced-DW: per-channel depthwise": {"per_channel_q": True},
    "per-channel everywhere": {"per_channel_q": "all"},
    "per-channel, free scales": {
        "per_channel_q": "all",
        "power2_weight_range": False,
        "power2_activation_range": False,
    },
}
FX_PRESETS = ("WC8_AT8", "WC8P2_AT8P2", "WC8SYMP2_AT8SYMP2")


def environment() -> str:
    """The command, the versions and the kind of machine, as Markdown."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    for option in ("--data", "--runs", "--environments"):
        if option in words:
            words[words.index(option) + 1] = "FOLDER"
    threads = torch.get_num_threads()
    return (
        f"`python benchmarks/{shlex.join(words)}`\n\n"
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores, "
        f"{threads} thread{'s' if threads > 1 else ''}"
    )


@torch.no_grad()
def logits(model: nn.Module, images: list[Tensor]) -> Tensor:
    """All outputs, (N, classes)."""
    return torch.cat([model(x) for x in images])


def percent_correct(output: Tensor, labels: Tensor) -> float:
    """Percent of the rows of `output` (N, classes) whose largest value is at `labels` (N,)."""
    return float((output.argmax(1) == labels).float().mean()) * 100


class Score(NamedTuple):
    """How a quantized network compares: top-1 and agreement with float in percent, SQNR in dB."""

    top1: float
    agreement: float
    sqnr: float


def score(task: Task, reference: Tensor, output: Tensor) -> Score:
    """Compare logits of the evaluated images (N, classes) with the float network's, `reference`."""
    agreement = percent_correct(output, reference.argmax(1))
    return Score(percent_correct(output, task.labels), agreement, sqnr(reference, output))


def num_different(wrapper: QuantModule, images: list[Tensor]) -> str:
    """Values that differ: simulation / integer graph / ONNX Runtime without, with optimizations."""
    with tempfile.TemporaryDirectory() as folder:
        path = wrapper.export(images[0][:1], Path(folder) / "model.onnx")
        found = verify(wrapper, images, path)
    return f"{' / '.join(map(str, found.mismatches.values()))} of {found.num_values}"


def calibrate_pact2(task: Task, batches: list[Tensor], options: dict[str, Any]) -> QuantModule:
    """A calibrated copy of the task's model."""
    model = copy.deepcopy(task.model)
    wrapper = QuantCalibrateModule(model, dummy_input=batches[0][:1], **options)
    wrapper.train()
    for batch in batches:
        wrapper(batch)
    return wrapper.eval()


def calibrate_fx(task: Task, batches: list[Tensor], preset: str) -> QuantModule:
    """A calibrated copy of the task's model."""
    return PTCFxModule(copy.deepcopy(task.model), qconfig_type=preset).calibrate(batches)


SCHEMES: dict[str, Callable[[Task, list[Tensor]], QuantModule]] = {
    f"QuantCalibrateModule, {name}": partial(calibrate_pact2, options=options)
    for name, options in PACT2_SCHEMES.items()
} | {f"PTCFxModule, {name}": partial(calibrate_fx, preset=name) for name in FX_PRESETS}


def print_task(task: Task, num_batches: int) -> None:
    """Calibrate and evaluate with each scheme; print a line for each."""
    reference = logits(task.model, task.images)
    top1 = percent_correct(reference, task.labels)
    batches = list(islice(cycle(task.calibration), num_batches))
    print(
        f"\n{task.name}: float top-1 {top1:.2f} % on {len(task.labels)} images; calibrated with "
        f"{num_batches} batches of {len(torch.cat(task.calibration))} others\n\n"
        "| scheme | top-1 % | change | agreement with float % | SQNR dB | seconds |\n"
        "|---|---|---|---|---|---|",
        flush=True,
    )
    for name, calibrate in SCHEMES.items():
        start = time.perf_counter()
        with redirect_stdout(sys.stderr):  # which weights are clipped: not part of the table
            wrapper = calibrate(task, batches)
        seconds = time.perf_counter() - start
        found = score(task, reference, logits(wrapper, task.images))
        row = f"| {name} | {found.top1:.2f} | {found.top1 - top1:+.2f} | {found.agreement:.2f}"
        print(f"{row} | {found.sqnr:.2f} | {seconds:.1f} |", flush=True)


def main() -> None:
    """Print a table per network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with cifar10_small and imagenet_samples")
    parser.add_argument(
        "--batches", type=int, default=20, help="calibration batches; images are repeated"
    )
    args = parser.parse_args()
    print(environment())
    for task in available_tasks(args.data):
        print_task(task, args.batches)


if __name__ == "__main__":
    main()
