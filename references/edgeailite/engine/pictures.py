"""Pictures of segmentations: photos, labels in colour, and float beside quantized."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import Patch

from edgeailite.datasets import IGNORED, Labels
from edgeailite.files.atomic import write_atomically
from references.edgeailite.engine.options import Options

# Share of the photo in a blend.
PHOTO_SHARE = 0.4
COLUMNS = ("input", "target", "float", "quantized", "float and quantized differ")


def read(path: Path) -> Tensor:
    """A picture file as (3, H, W), uint8."""
    with Image.open(path) as picture:
        return v2.functional.pil_to_tensor(picture.convert("RGB"))


def to_photo(image: Tensor, options: Options) -> Tensor:
    """Undo the normalization: model input (3, H, W) to RGB pixels, uint8."""
    scale = torch.tensor(options.image_scale).reshape(-1, 1, 1)
    mean = torch.tensor(options.image_mean).reshape(-1, 1, 1)
    pixels = (image / scale + mean).round().clamp(0, 255).to(torch.uint8)
    return pixels.flip(0) if options.input_channel_reverse else pixels


def colorize(labels: Tensor, palette: Sequence[tuple[int, int, int]]) -> Tensor:
    """Class indices (H, W) to colours (3, H, W), uint8; ignored pixels are black."""
    table = torch.zeros(IGNORED + 1, 3, dtype=torch.uint8)
    table[: len(palette)] = torch.tensor(palette, dtype=torch.uint8)
    return table[labels.long()].permute(2, 0, 1)


def blend(photo: Tensor, labels: Tensor, palette: Sequence[tuple[int, int, int]]) -> Tensor:
    """Photo (3, H, W) under the colours of labels (H, W), uint8."""
    colours = colorize(labels, palette).float()
    mixed = PHOTO_SHARE * photo.float() + (1.0 - PHOTO_SHARE) * colours
    return mixed.round().to(torch.uint8)


def resize_labels(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Class indices (H, W) at another size, by the nearest neighbour."""
    resized = torch.nn.functional.interpolate(labels[None, None].float(), size=tuple(size))
    return resized[0, 0].to(labels.dtype)


def write_comparison(
    path: Path, samples: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]], labels: Labels
) -> None:
    """Draw float and quantized predictions beside input and target, and where they differ.

    Args:
        path: PNG file to write.
        samples: Photo (3, H, W), and target, float and quantized prediction (H, W) each.
        labels: Names and colours of the classes.
    """
    height, width = samples[0][0].shape[-2:]
    figure, axes = plt.subplots(
        len(samples),
        len(COLUMNS),
        figsize=(3.2 * len(COLUMNS), 3.2 * height / width * len(samples) + 1.2),
        squeeze=False,
        layout="constrained",
    )
    for row, (photo, target, float_map, quantized_map) in zip(axes, samples, strict=True):
        drawn = [photo]
        drawn += [blend(photo, m, labels.palette) for m in (target, float_map, quantized_map)]
        drawn.append(255 * (float_map != quantized_map).to(torch.uint8).expand(3, -1, -1))
        for axis, picture in zip(row, drawn, strict=True):
            axis.imshow(picture.permute(1, 2, 0).numpy())
            axis.set_axis_off()
    for axis, title in zip(axes[0], COLUMNS, strict=True):
        axis.set_title(title)
    shown = sorted({int(c) for sample in samples for m in sample[1:] for c in m.unique()})
    patches = [
        Patch(color=[v / 255 for v in labels.palette[c]], label=labels.classes[c])
        for c in shown
        if c != IGNORED
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=10, fontsize="small")
    with write_atomically(path) as temporary:
        figure.savefig(temporary, dpi=100)
    plt.close(figure)
