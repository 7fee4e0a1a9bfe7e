"""Data sets by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

__all__ = [
    "ImageDataset",
    "Split",
    "Transform",
    "create_dataset",
    "list_datasets",
    "register_dataset",
]

Split = Literal["train", "val"]
Transform = Callable[..., Any]


class ImageDataset(Protocol):
    """Interface of a data set, as the training loops use it."""

    classes: list[str]

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: int) -> tuple[Any, Any] | None:
        """Transformed image and target; None for an unreadable image that is skipped."""


Builder = TypeVar("Builder", bound=Callable[..., ImageDataset])
_BUILDERS: dict[str, Callable[..., ImageDataset]] = {}


def register_dataset(name: str) -> Callable[[Builder], Builder]:
    """Enter a builder under `name`, called as `create_dataset` is.

    Raises:
        ValueError: The name is taken.
    """

    def register(builder: Builder) -> Builder:
        if name in _BUILDERS:
            raise ValueError(
                f"A data set named '{name}' is registered already "
                f"({_BUILDERS[name].__module__}). Choose another name."
            )
        _BUILDERS[name] = builder
        return builder

    return register


def list_datasets() -> list[str]:
    """Names that `create_dataset` takes, sorted."""
    return sorted(_BUILDERS)


def create_dataset(
    name: str,
    root: str | Path,
    split: Split,
    transform: Transform | None = None,
    *,
    skip_unreadable_images: bool = False,
) -> ImageDataset:
    """Build one split of a registered data set, its folders checked.

    Args:
        name: One of `list_datasets`.
        root: Folder of the data set.
        split: ``train`` or ``val``.
        transform: Applied to each PIL image (RGB); in segmentation, to image and target together.
        skip_unreadable_images: Give None for an image that can't be decoded instead of raising.

    Returns:
        The data set, with its class names in ``classes``.

    Raises:
        ValueError: Unknown name, or folders that can't be trained with.
        FileNotFoundError: A folder is missing.
    """
    if name not in _BUILDERS:
        nearest = difflib.get_close_matches(name, _BUILDERS, n=3, cutoff=0.4)
        hint = f" Did you mean {' or '.join(nearest)}?" if nearest else ""
        raise ValueError(
            f"Unknown data set '{name}'.{hint} Available: {', '.join(list_datasets())}."
        )
    return _BUILDERS[name](
        Path(root), split, transform, skip_unreadable_images=skip_unreadable_images
    )
