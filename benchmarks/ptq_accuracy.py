"""Post-training accuracy on real data: top-1, agreement with float, and SQNR of the logits.

Networks and images are those of ``--data`` (what is absent is skipped): a CIFAR ResNet-20 and a
MobileNetV1 of width 0.25. Calibration never sees an evaluated image.

    python benchmarks/ptq_accuracy.py --data ../shared/data
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from edgeailite import xnn
from edgeailite.models import create_model
from edgeailite.quantization.report import sqnr

BATCH_SIZE = 50


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


def _rgb(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"), dtype=np.float32)


def _stack(paths: list[Path], prepare: Callable[[np.ndarray], Tensor]) -> list[Tensor]:
    return list(torch.stack([prepare(_rgb(p)) for p in paths]).split(BATCH_SIZE))


def resnet20_task(data: Path) -> Task:
    """CIFAR-10: 500 training images to calibrate, all validation images to evaluate."""
    root = data / "cifar10_small"
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def prepare(image: np.ndarray) -> Tensor:
        return ((torch.from_numpy(image) / 255 - mean) / std).permute(2, 0, 1)

    model = ResNet20()
    model.load_state_dict(torch.load(root / "resnet20.pth", weights_only=True))
    train = sorted((root / "train").glob("*/*.png"))
    chosen = [
        train[i]
        for i in torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[
            :500
        ].tolist()
    ]
    val = sorted((root / "val").glob("*/*.png"))
    labels = torch.tensor([int(p.parent.name.split("_")[0]) for p in val])
    return Task("resnet20", model.eval(), _stack(chosen, prepare), _stack(val, prepare), labels)


def mobilenet_task(data: Path) -> Task:
    """ImageNet samples: 62 images of other classes to calibrate, 500 to evaluate; rotated, as the weights need."""
    root = data / "imagenet_samples"

    def prepare(image: np.ndarray) -> Tensor:
        top, left = (image.shape[0] - 224) // 2, (image.shape[1] - 224) // 2
        crop = image[top : top + 224, left : left + 224][::-1, ::-1].copy()
        return (torch.from_numpy(crop) / 127.5 - 1).permute(2, 0, 1)

    model = create_model("mobilenetv1_x0p25", activation=nn.ReLU6)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3
    xnn.utils.load_weights(
        model,
        torch.load(root / "mobilenet_v1_025.pth", weights_only=True),
        strict=True,
        verbose=False,
    )
    val = sorted((root / "evaluation").glob("*.jpg"))
    labels = torch.tensor([int(p.name.split("_")[0]) for p in val])
    calibration = sorted((root / "calibration").glob("*.jpg"))
    return Task(
        "mobilenet_v1_025", model.eval(), _stack(calibration, prepare), _stack(val, prepare), labels
    )


TASKS = {
    "cifar10_small/resnet20.pth": resnet20_task,
    "imagenet_samples/mobilenet_v1_025.pth": mobilenet_task,
}
SCHEMES: dict[str, dict] = {
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


@torch.no_grad()
def logits(model: nn.Module, images: list[Tensor]) -> Tensor:
    """All outputs, (N, classes)."""
    return torch.cat([model(x) for x in images])


def calibrate(task: Task, options: dict, passes: int) -> nn.Module:
    """A calibrated copy of the task's model."""
    import copy

    wrapper = xnn.quantize.QuantCalibrateModule(
        copy.deepcopy(task.model), dummy_input=task.images[0][:1], **options
    )
    wrapper.train()
    for _ in range(passes):
        for batch in task.calibration:
            wrapper(batch)
    return wrapper.eval()


def main() -> None:
    """Print a table per network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with cifar10_small and imagenet_samples"
    )
    parser.add_argument(
        "--passes", type=int, default=2, help="how often the calibration images are run"
    )
    args = parser.parse_args()
    for needed, make in TASKS.items():
        if not (args.data / needed).is_file():
            print(f"skipped: no {args.data / needed}")
            continue
        task = make(args.data)
        reference = logits(task.model, task.images)
        top1 = float((reference.argmax(1) == task.labels).float().mean()) * 100
        print(f"\n{task.name}: float top-1 {top1:.2f} % on {len(task.labels)} images")
        print(
            f"{'scheme':42} {'top-1':>7} {'change':>7} {'agree':>7} {'SQNR dB':>8} {'seconds':>8}"
        )
        for name, options in SCHEMES.items():
            start = time.perf_counter()
            wrapper = calibrate(task, options, args.passes)
            seconds = time.perf_counter() - start
            out = logits(wrapper, task.images)
            accuracy = float((out.argmax(1) == task.labels).float().mean()) * 100
            agreement = float((out.argmax(1) == reference.argmax(1)).float().mean()) * 100
            row = f"{name:42} {accuracy:7.2f} {accuracy - top1:+7.2f} {agreement:7.2f}"
            print(f"{row} {sqnr(reference, out):8.2f} {seconds:8.1f}", flush=True)


if __name__ == "__main__":
    main()
