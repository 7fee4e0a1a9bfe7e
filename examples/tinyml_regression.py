"""Regression on a microcontroller: natural frequency and damping of an oscillator, from its motion.

The signals are synthetic: a damped mass on a spring, plucked at a random moment of its cycle, seen
through a noisy sensor. A 1-d network estimates both numbers from 128 samples.

python examples/tinyml_regression.py [--weight_bits 4] [--wrapper generic_qat]
"""

from __future__ import annotations

import numpy as np
import torch
import tyro
from tinyml_common import Options, Task, run
from torch import Tensor, nn

WINDOW = 128  # samples
FREQUENCIES = (0.03, 0.12)  # cycles per sample
DAMPING = (0.01, 0.08)  # damping ratio
NOISE = 0.05


def make_data(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Motions ``(N, 1, WINDOW)`` and ``(N, 2)`` frequencies and damping ratios, scaled to -1..1."""
    generator = np.random.default_rng(seed)
    targets = generator.uniform(-1, 1, (count, 2))
    (low, high), (least, most) = FREQUENCIES, DAMPING
    frequency = (low + high) / 2 + targets[:, :1] * (high - low) / 2
    damping = (least + most) / 2 + targets[:, 1:] * (most - least) / 2
    phase, time = generator.uniform(0, 2 * np.pi, (count, 1)), np.arange(WINDOW)[None, :]
    angle = 2 * np.pi * frequency * time
    motion = np.exp(-damping * angle) * np.cos(np.sqrt(1 - damping**2) * angle + phase)
    motion += generator.normal(0, NOISE, motion.shape)
    inputs = torch.tensor(motion, dtype=torch.float32).unsqueeze(1)
    return inputs, torch.tensor(targets, dtype=torch.float32)


def make_model() -> nn.Module:
    """Conv1d layers on the motion, then a small head."""

    def unit(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv1d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        return [convolution, nn.BatchNorm1d(outputs), nn.ReLU()]

    return nn.Sequential(
        nn.BatchNorm1d(1),
        *unit(1, 16, 7, 2),
        *unit(16, 24, 5, 2),
        *unit(24, 32, 5, 2),
        nn.AvgPool1d(2),
        nn.Flatten(),
        nn.Linear(256, 32),
        nn.ReLU(),
        nn.Linear(32, 2),
    )


def explained_variance(outputs: Tensor, targets: Tensor) -> float:
    """R^2 in percent, the mean over both numbers."""
    residual = (outputs - targets).square().sum(0)
    total = (targets - targets.mean(0)).square().sum(0)
    return 100 * float((1 - residual / total).mean())


def make_task(seed: int) -> Task:
    """Synthetic motions to learn from, and others."""
    return Task(
        name="regression",
        training=make_data(2048, seed),
        validation=make_data(512, seed + 1),
        loss=nn.functional.mse_loss,
        metric=explained_variance,
        metric_name="R^2 in % (synthetic signals)",
    )


def main(options: Options) -> dict[str, float]:
    """Train, quantize, export, compare."""
    torch.manual_seed(options.seed)
    return run(make_model(), make_task(options.seed), options)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
