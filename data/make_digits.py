"""Turn scikit-learn's handwritten digits into an image folder: real images without a download.

The 1797 scans (8x8, 16 grey levels; E. Alpaydin, C. Kaynak, UCI 1998) become 32x32 RGB PNG files in
``digits/{train,val}/{0..9}/``, 1437 to train with and 360 held out, stratified by class.

    python data/make_digits.py
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from edgeailite.files.folder import write_folder

IMAGE_SIZE = 32
NUM_IMAGES = 1797
NUM_VAL = 360
DEFAULT_OUTPUT = Path(__file__).resolve().parent / "datasets" / "digits"

logger = logging.getLogger(__name__)


def to_rgb_image(grey: np.ndarray) -> Image.Image:
    """Enlarge one scan.

    Args:
        grey: Grey levels 0..16, shape (8, 8).

    Returns:
        RGB image of 32x32 pixels, levels 0..255, bicubic interpolation.
    """
    levels = np.round(grey * (255.0 / 16.0)).astype(np.uint8)
    image = Image.fromarray(levels).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    return image.convert("RGB")


def is_complete(folder: Path) -> bool:
    """Tell whether both splits hold all their images."""
    counts = [len(list((folder / split).glob("*/*.png"))) for split in ("train", "val")]
    return counts == [NUM_IMAGES - NUM_VAL, NUM_VAL]


def _write_images(folder: Path) -> None:
    digits = load_digits()
    train, val = train_test_split(
        np.arange(NUM_IMAGES), test_size=NUM_VAL, random_state=0, stratify=digits.target
    )
    split_of = dict.fromkeys(train.tolist(), "train") | dict.fromkeys(val.tolist(), "val")
    for index in tqdm(range(NUM_IMAGES), desc="digits", unit="image", disable=None):
        class_folder = folder / split_of[index] / str(digits.target[index])
        class_folder.mkdir(parents=True, exist_ok=True)
        to_rgb_image(digits.images[index]).save(class_folder / f"{index:04d}.png")


def make_digits(output: Path = DEFAULT_OUTPUT) -> Path:
    """Write the image folder, or keep the one that is complete.

    Args:
        output: Folder that will hold ``train`` and ``val``.

    Returns:
        The folder.
    """
    if is_complete(output):
        logger.info("%s is complete (%d images): nothing to do", output, NUM_IMAGES)
        return output
    write_folder(output, _write_images)
    logger.info("wrote %d images to %s (%d held out)", NUM_IMAGES, output, NUM_VAL)
    return output


def main() -> None:
    """Parse the command line and write the images."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="default: %(default)s")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    make_digits(arguments.output)


if __name__ == "__main__":
    main()
