"""The options of the classification script."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from references.edgeailite.engine.options import Options, check_share, check_size


@dataclasses.dataclass(frozen=True)
class ClassificationOptions(Options):
    """Train, calibrate or validate an image classifier, in float or quantized.

    Underscores and dashes are the same; switches take the word True or False.
    """

    dataset_name: str = "image_folder_classification"
    """Name in edgeailite.datasets."""
    data_path: Path = Path("./data/datasets/image_folder_classification")
    """Folder of the data set: train/CLASS/* and val/CLASS/* (or validation/CLASS/*)."""
    img_resize: tuple[int, ...] = (256,)
    """Resize before the centre crop: one number is the short side, two are height and width."""
    img_crop: tuple[int, ...] = (224,)
    """Size of the model's input: one number, or height and width."""
    rand_scale: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest area of a random crop, as fractions of the image."""
    auto_augment: Annotated[str | None, tyro.conf.arg(aliases=["--auto-augument"])] = None
    """Augmentation policy: imagenet, cifar10, svhn, randaugment, trivialaugment or augmix."""
    random_erasing: float = 0.0
    """Probability of blanking a random rectangle of a training image."""

    model_name: str = "mobilenetv2_tv_x1"
    """Name in edgeailite.models, torchvision/NAME or timm/NAME."""
    strides: tuple[int, ...] | None = None
    """Strides of the model's stages, for small images; default: the model's own."""
    label_smoothing: float = 0.0
    """Share of the target probability that is spread over all classes."""

    def __post_init__(self) -> None:
        """Fill in what depends on the phase and refuse what can't work."""
        super().__post_init__()
        for name in ("img_resize", "img_crop"):
            check_size(name, getattr(self, name))
        for name in ("random_erasing", "label_smoothing"):
            check_share(name, getattr(self, name))
        low, high = self.rand_scale
        if not 0.0 < low <= high <= 1.0:
            raise ValueError(
                f"--rand_scale takes two fractions, 0 < smallest <= largest <= 1, got {low} {high}."
            )

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the model's input, in pixels."""
        return self.img_crop[0], self.img_crop[-1]

    @property
    def model_options(self) -> dict[str, Any]:
        """Further arguments of the model's builder."""
        return {} if self.strides is None else {"strides": self.strides}
