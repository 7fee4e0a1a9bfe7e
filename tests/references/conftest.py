"""A tiny data set and a tiny model: each run of the script takes about a second."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from data.make_street_scenes import Settings, make_street_scenes
from edgeailite.models import registry
from references.edgeailite.engine.options import parse_options
from references.edgeailite.engine.options_classification import ClassificationOptions
from references.edgeailite.scripts import train_classification_main, train_segmentation_main


class TinyNet(nn.Module):
    def __init__(self, num_classes=1000, strides=None):
        super().__init__()
        stride = 2 if strides is None else strides[0]
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, 2, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(16, num_classes)

    def forward(self, x):
        return self.classifier(self.dropout(self.flatten(self.pool(self.features(x)))))


class TinySegmentation(nn.Module):
    def __init__(self, num_classes=19):
        super().__init__()
        self.encoder = TinyNet().features
        self.decoder = nn.Sequential(
            nn.Conv2d(16, num_classes, 1), nn.Upsample(scale_factor=4, mode="bilinear")
        )

    def forward(self, x):
        return self.decoder(self.encoder(x))


@pytest.fixture(autouse=True)
def _tiny_models(monkeypatch):
    monkeypatch.setitem(registry._BUILDERS, "tiny", TinyNet)
    monkeypatch.setitem(registry._BUILDERS, "tiny_segmentation", TinySegmentation)


@pytest.fixture(scope="session")
def street_scenes(tmp_path_factory):
    """12 training and 5 validation scenes, 32x64, rendered."""
    settings = Settings(num_train=12, num_val=5, width=64, height=32)
    return make_street_scenes(tmp_path_factory.mktemp("scenes") / "scenes", settings)


@pytest.fixture
def segmentation_arguments(street_scenes):
    """Command line of a short float training of a segmentation model."""
    return [
        *("--data_path", str(street_scenes), "--model_name", "tiny_segmentation", "--gpus"),
        *("--img_resize", "16", "32", "--batch_size", "4", "--epochs", "2", "--lr", "0.02"),
        *("--workers", "0", "--save_onnx", "False", "--evaluate_start", "False"),
    ]


@pytest.fixture
def run_segmentation(segmentation_arguments, tmp_path):
    """Run the segmentation script in this process; gives its folder."""
    torch.set_num_threads(1)

    def run(name, *more):
        folder = tmp_path / name
        options = [*segmentation_arguments, "--save_path", str(folder), *more]
        train_segmentation_main.main(options)
        return folder

    return run


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """Three classes of coloured noise, 12 training and 5 validation images each, 16x16."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 5)):
        for index, name in enumerate(("blue", "green", "red")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 128, (16, 16, 3), dtype=np.uint8)
                pixels[..., 2 - index] += 100
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture
def arguments(image_folder):
    """Command line of a short float training."""
    return [
        *("--data_path", str(image_folder), "--model_name", "tiny", "--gpus"),
        *("--img_resize", "16", "--img_crop", "16", "--rand_scale", "0.5", "1.0"),
        *("--batch_size", "8", "--epochs", "2", "--lr", "0.05", "--workers", "0"),
        *("--save_onnx", "False", "--evaluate_start", "False"),
    ]


@pytest.fixture
def run_script(arguments, tmp_path):
    """Run the script in this process; gives its result and its folder."""
    torch.set_num_threads(1)

    def run(name, *more):
        folder = tmp_path / name
        train_classification_main.main([*arguments, "--save_path", str(folder), *more])
        return folder

    return run


@pytest.fixture
def make_options(arguments):
    def make(*more):
        return parse_options(ClassificationOptions, [*arguments, *more])

    return make
