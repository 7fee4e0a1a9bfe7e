"""The options of the segmentation script."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar, Literal

from references.edgeailite.engine.options import Options, check_size


@dataclasses.dataclass(frozen=True)
class SegmentationOptions(Options):
    """Train, calibrate or validate a semantic segmentation model, in float or quantized.

    Underscores and dashes are the same; switches take the word True or False.
    """

    step_at: ClassVar[tuple[float, float]] = (0.4, 0.8)
    step_factor: ClassVar[float] = 0.25

    dataset_name: str = "cityscapes_segmentation"
    """Name in edgeailite.datasets."""
    data_path: Path = Path("./data/datasets/cityscapes/data")
    """Folder of the data set; Cityscapes: it holds leftImg8bit and gtFine."""
    img_resize: tuple[int, ...] = (384, 768)
    """Height and width of the model's input in validation and on the device; one for both."""
    img_crop: tuple[int, ...] | None = None
    """Height and width of training crops. Default: img_resize."""
    output_size: tuple[int, ...] | None = None
    """Height and width at which predictions are compared. Default: each target's own."""
    rand_scale: tuple[float, float] = (1.0, 2.0)
    """Smallest and largest factor of img_resize before training crops."""
    rand_rotation: float = 0.0
    """Largest angle by which training images are turned, in degrees."""
    class_weights: bool = False
    """Weight classes in the training loss by the data set's historical weights."""

    model_name: str = "deeplabv3plus_mobilenetv2_tv_edgeailite"
    """Name in edgeailite.models."""
    epochs: int = 250
    """Passes over the training images (of epoch_size)."""
    batch_size: int = 12
    """Images per step, all GPUs together."""
    optimizer: Literal["sgd", "sgd_nesterov", "adam", "rmsprop"] = "adam"
    """sgd, sgd_nesterov and rmsprop use momentum 0.9."""
    lr: float = 4e-4
    """Learning rate after warm-up."""
    weight_decay: float = 1e-4
    """L2 penalty on all parameters."""
    scheduler: Literal["cosine", "step", "poly", "exponential"] = "step"
    """How the learning rate falls after warm-up."""

    export_argmax: bool = False
    """Export model_argmax.onnx as well: its output is the class of each pixel."""

    def __post_init__(self) -> None:
        """Fill in what depends on the phase and refuse what can't work."""
        super().__post_init__()
        if self.img_crop is None:
            object.__setattr__(self, "img_crop", self.img_resize)
        for name in ("img_resize", "img_crop", "output_size"):
            if getattr(self, name) is not None:
                check_size(name, getattr(self, name))
        low, high = self.rand_scale
        if not 0.0 < low <= high:
            raise ValueError(
                f"--rand_scale takes two factors, 0 < smallest <= largest, got {low} {high}."
            )
        if not 0.0 <= self.rand_rotation <= 180.0:
            raise ValueError(
                f"--rand_rotation is an angle from 0 to 180 degrees, got {self.rand_rotation}."
            )
        if self.export_argmax and not self.save_onnx:
            raise ValueError("--export_argmax has no effect with --save_onnx False.")

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the model's input, in pixels."""
        return self.img_resize[0], self.img_resize[-1]
