"""The network whose ranges are searched, and its batches."""

import torch
from torch import nn

from tests.quantization.helpers import randomize_batch_norms


def depthwise_network() -> nn.Module:
    torch.manual_seed(0)
    return randomize_batch_norms(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(),
            nn.Conv2d(8, 8, 3, groups=8),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 6, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 4),
        )
    ).eval()


def image_batches() -> list[tuple[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 3, 12, 12, generator=generator),) for _ in range(2)]
