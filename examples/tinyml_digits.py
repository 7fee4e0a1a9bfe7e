"""Handwritten digits on a microcontroller: scikit-learn's 8x8 images, a network of 12 k weights.

python examples/tinyml_digits.py [--weight_bits 4] [--wrapper generic_qat]
"""

from __future__ import annotations

import torch
import tyro
from sklearn.datasets import load_digits
from tinyml_common import Options, Task, accuracy, run
from torch import nn

NUM_TRAINING = 1437


def make_task() -> Task:
    """Images ``(N, 1, 8, 8)`` from 0 to 16, and their digits."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(digits.target)
    return Task(
        name="digits",
        training=(images[:NUM_TRAINING], labels[:NUM_TRAINING]),
        validation=(images[NUM_TRAINING:], labels[NUM_TRAINING:]),
        loss=nn.functional.cross_entropy,
        metric=accuracy,
        metric_name="accuracy in %",
    )


def make_model() -> nn.Module:
    """Three convolutions; the batch norm in front normalises the input."""
    return nn.Sequential(
        nn.BatchNorm2d(1),
        *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 24, 3, 2, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU()),
        *(nn.Conv2d(24, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def main(options: Options) -> dict[str, float]:
    """Train, quantize, export, compare."""
    torch.manual_seed(options.seed)
    return run(make_model(), make_task(), options)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
