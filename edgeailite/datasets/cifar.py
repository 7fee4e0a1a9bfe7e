"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), downloaded by torchvision on first use."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

from torchvision.datasets import CIFAR10, CIFAR100

from edgeailite.datasets.registry import Split, Transform, register_dataset

__all__ = ["cifar10_classification", "cifar100_classification"]


def _create(
    family: type[CIFAR10], root: Path, split: Split, transform: Transform | None
) -> CIFAR10:
    train = split == "train"
    try:
        return family(str(root), train=train, transform=transform, download=True)
    except (URLError, OSError) as error:
        raise FileNotFoundError(
            f"{family.__name__} is not under '{root}' and can't be downloaded ({error}). "
            f"Fetch {family.url} on a machine with a network and put the archive into '{root}'."
        ) from error


@register_dataset("cifar10_classification")
def cifar10_classification(
    root: Path,
    split: Split,
    transform: Transform | None,
    *,
    skip_unreadable_images: bool,
) -> CIFAR10:
    """CIFAR-10: 50,000 + 10,000 images of 32x32; arrays in memory, none of them unreadable.

    Raises:
        FileNotFoundError: Absent and not to be downloaded.
    """
    del skip_unreadable_images
    return _create(CIFAR10, root, split, transform)


@register_dataset("cifar100_classification")
def cifar100_classification(
    root: Path,
    split: Split,
    transform: Transform | None,
    *,
    skip_unreadable_images: bool,
) -> CIFAR10:
    """CIFAR-100: 50,000 + 10,000 images of 32x32; arrays in memory, none of them unreadable.

    Raises:
        FileNotFoundError: Absent and not to be downloaded.
    """
    del skip_unreadable_images
    return _create(CIFAR100, root, split, transform)
