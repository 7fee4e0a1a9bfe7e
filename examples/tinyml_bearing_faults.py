"""Bearing faults from vibration on a microcontroller. The signals are synthetic: a physical model.

A rolling element that passes a defect hits it: a train of impulses at a rate that geometry and
shaft speed give, each of which makes the housing ring. What the sensor sees is that train, its
amplitude modulated as the defect moves through the load zone, plus unbalance and noise.

python examples/tinyml_bearing_faults.py [--weight_bits 4] [--wrapper generic_qat]

Reference: McFadden and Smith 1984, "Model for the vibration produced by a single point defect in a
rolling element bearing", Journal of Sound and Vibration 96(1).
"""

from __future__ import annotations

import numpy as np
import torch
import tyro
from tinyml_common import Options, Task, accuracy, run
from torch import nn

SAMPLE_RATE = 8192.0  # Hz
WINDOW = 512  # samples
CLASSES = ("healthy", "outer race", "inner race", "ball")
NUM_BALLS, BALL_TO_PITCH = 9, 0.24  # rolling elements; their diameter over the pitch diameter
SHAFT_SPEEDS = (45.0, 55.0)  # Hz
RESONANCE, DECAY = 2200.0, 1.2e-3  # of the housing: Hz, s
SLIP = 0.01  # of the time between two impacts, standard deviation


def impact_rate(kind: str, shaft: float) -> float:
    """Impacts per second of a defect, at `shaft` turns per second, contact angle zero."""
    if kind == "outer race":
        return NUM_BALLS / 2 * shaft * (1 - BALL_TO_PITCH)
    if kind == "inner race":
        return NUM_BALLS / 2 * shaft * (1 + BALL_TO_PITCH)
    if kind == "ball":  # it hits both races in a turn
        return shaft / BALL_TO_PITCH * (1 - BALL_TO_PITCH**2)
    raise ValueError(f"kind is {kind!r}; allowed: {', '.join(map(repr, CLASSES[1:]))}.")


def modulation_rate(kind: str, shaft: float) -> float:
    """Turns per second of the defect through the load zone: the shaft's, the cage's, or none."""
    cage = shaft / 2 * (1 - BALL_TO_PITCH)
    return {"outer race": 0.0, "inner race": shaft, "ball": cage}[kind]


def make_signal(kind: str, generator: np.random.Generator) -> np.ndarray:
    """One window of acceleration (arbitrary unit), shape ``(WINDOW,)``, float64."""
    time = np.arange(WINDOW) / SAMPLE_RATE
    shaft = generator.uniform(*SHAFT_SPEEDS)
    phase = generator.uniform(0, 2 * np.pi)
    signal = generator.uniform(0.2, 0.5) * np.sin(2 * np.pi * shaft * time + phase)
    signal += generator.normal(0, 0.25, WINDOW)
    if kind == "healthy":
        return signal
    period = 1 / impact_rate(kind, shaft)
    count = int(WINDOW / SAMPLE_RATE / period) + 2
    gaps = period * (1 + generator.normal(0, SLIP, count))
    impacts = np.cumsum(gaps) - generator.uniform(0, 2) * period
    strength = generator.uniform(0.8, 1.6) * np.ones(count)
    if rate := modulation_rate(kind, shaft):
        strength *= (1 + np.cos(2 * np.pi * rate * impacts + phase)) / 2
    since = time[:, None] - impacts[None, :]
    ringing = np.exp(-np.maximum(since, 0) / DECAY) * np.sin(2 * np.pi * RESONANCE * since)
    return signal + (np.where(since >= 0, ringing, 0) * strength).sum(axis=1)


def make_data(num_per_class: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows ``(N, 1, WINDOW, 1)`` and classes ``(N,)``, the same for the same seed."""
    generator = np.random.default_rng(seed)
    signals = [make_signal(kind, generator) for kind in CLASSES for _ in range(num_per_class)]
    labels = torch.arange(len(CLASSES)).repeat_interleave(num_per_class)
    inputs = torch.tensor(np.stack(signals), dtype=torch.float32)
    return inputs.reshape(-1, 1, WINDOW, 1), labels


def make_model() -> nn.Module:
    """A time-series network as the NPU likes it: channels by four, kernels ``(k, 1)``."""

    def unit(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
        size, padding = (kernel, 1), (kernel // 2, 0)
        convolution = nn.Conv2d(inputs, outputs, size, (stride, 1), padding, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        nn.BatchNorm2d(1),
        *unit(1, 8, 7, 2),
        *unit(8, 16, 5, 2),
        *unit(16, 32, 5, 2),
        *unit(32, 32, 3, 1),
        nn.MaxPool2d((4, 1)),
        nn.AdaptiveAvgPool2d((4, 1)),
        nn.Flatten(),
        nn.Linear(128, len(CLASSES)),
    )


def make_task(seed: int) -> Task:
    """Synthetic windows to learn from, and others of the same model."""
    return Task(
        name="bearing_faults",
        training=make_data(400, seed),
        validation=make_data(100, seed + 1),
        loss=nn.functional.cross_entropy,
        metric=accuracy,
        metric_name="accuracy in % (synthetic signals)",
    )


def main(options: Options) -> dict[str, float]:
    """Train, quantize, export, compare."""
    torch.manual_seed(options.seed)
    return run(make_model(), make_task(options.seed), options)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
