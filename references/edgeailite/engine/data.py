"""Data loaders whose order and augmentations depend on seed, epoch and image alone.

Neither the number of loading processes nor what ran before changes them; so a run that was resumed
sees what an uninterrupted one sees.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from edgeailite.datasets import ImageDataset, Split, create_dataset
from references.edgeailite.engine.distributed import Process
from references.edgeailite.engine.options import Options


def derive_seed(*parts: int) -> int:
    """Mix numbers into one 63-bit seed; near inputs give unrelated seeds."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def count_images(size: float, available: int) -> int:
    """Number of images that an epoch size stands for.

    Args:
        size: Up to 1 a fraction, above a count, 0 all.
        available: Number of images there are.
    """
    if size == 0.0:
        return available
    wanted = round(size * available) if size <= 1.0 else int(size)
    return min(max(wanted, 1), available)


class SeededSamples(Dataset):
    """A data set whose random transforms are seeded per image and epoch.

    Args:
        dataset: What to read from.
        seed: Seed of the run.
    """

    def __init__(self, dataset: ImageDataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        """Number of images."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any] | None:
        """One transformed image and its target; None where it was skipped."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(self.seed, self.epoch, index))
            return self.dataset[index]


class EpochSampler(Sampler[int]):
    """This process's share of a fresh shuffle in each epoch, in whole batches.

    All processes get the same number of images; an incomplete last batch is left out unless it is
    the only one.

    Args:
        num_images: Size of the data set.
        epoch_size: Images per epoch, see `count_images`.
        batch_size: Images per step of this process.
        seed: Seed of the run.
        process: Which share.

    Raises:
        ValueError: Fewer images than processes.
    """

    def __init__(
        self, num_images: int, epoch_size: float, batch_size: int, seed: int, process: Process
    ) -> None:
        share = count_images(epoch_size, num_images) // process.world_size
        if share == 0:
            raise ValueError(
                f"An epoch of {count_images(epoch_size, num_images)} images is too small for "
                f"{process.world_size} processes. Raise --epoch_size or use fewer processes."
            )
        self.num_images = num_images
        self.length = share - share % batch_size if share >= batch_size else share
        self.seed = seed
        self.process = process
        self.epoch = 0

    def __len__(self) -> int:
        """Images of this process per epoch."""
        return self.length

    def __iter__(self) -> Iterator[int]:
        """Indices of the epoch set in `epoch`."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        order = torch.randperm(self.num_images, generator=generator).tolist()
        shares = slice(self.process.rank, None, self.process.world_size)
        return iter(order[shares][: self.length])


class SpreadSampler(Sampler[int]):
    """This process's share of images spread evenly over the data set, always the same.

    Args:
        num_images: Size of the data set.
        epoch_size: How many of them, see `count_images`.
        process: Which share.
    """

    def __init__(self, num_images: int, epoch_size: float, process: Process) -> None:
        count = count_images(epoch_size, num_images)
        chosen = np.arange(count) * num_images // count
        self.indices = chosen[process.rank :: process.world_size].tolist()

    def __len__(self) -> int:
        """Images of this process."""
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        """Their indices, ascending."""
        return iter(self.indices)


def collate_readable(samples: Sequence[tuple[Tensor, Any] | None]) -> tuple[Tensor, Any]:
    """Stack what could be read.

    Returns:
        Images (N, C, H, W), and their targets: one tensor, class indices (N,) or maps (N, H, W); or
        a list of N maps where they differ in size. N is smaller where images were skipped.

    Raises:
        ValueError: Nothing of the batch could be read.
    """
    readable = [sample for sample in samples if sample is not None]
    if not readable:
        raise ValueError(
            f"None of the {len(samples)} images of a batch could be read (see the log for their "
            f"names). Repair the data set."
        )
    images, targets = zip(*readable, strict=True)
    differ = len({getattr(target, "shape", None) for target in targets}) > 1
    return torch.stack(images), list(targets) if differ else default_collate(targets)


@dataclasses.dataclass(frozen=True)
class Data:
    """Loaders of both splits, and what the targets mean."""

    train: DataLoader | None
    """None where only validation is asked for."""
    val: DataLoader
    dataset: ImageDataset
    """The validation set that `val` reads from."""

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return self.dataset.classes


def images_of(loader: DataLoader) -> Iterator[Tensor]:
    """The images (N, C, H, W) of a loader, batch by batch."""
    return (images for images, _ in loader)


def set_epoch(loader: DataLoader, epoch: int) -> None:
    """Choose the order and augmentations of an epoch, before iterating over `loader`."""
    loader.sampler.epoch = epoch
    loader.dataset.epoch = epoch


def _loader(
    dataset: ImageDataset,
    sampler: Sampler[int],
    batch_size: int,
    options: Options,
    process: Process,
) -> DataLoader:
    return DataLoader(
        SeededSamples(dataset, options.seed),
        batch_size=batch_size,
        sampler=sampler,
        num_workers=options.workers,
        collate_fn=collate_readable,
        pin_memory=process.device.type == "cuda",
        generator=torch.Generator(),
    )


def open_data(
    options: Options, process: Process, train_transform: Any, eval_transform: Any
) -> Data:
    """Open the data set and make its loaders.

    Args:
        options: Of the run.
        process: This process, which gets its share.
        train_transform: For training images.
        eval_transform: For validation images.

    Raises:
        ValueError: The data set can't be used; the message says why.
        FileNotFoundError: A folder is missing.
    """
    batch_size = max(1, options.batch_size // process.world_size)

    def open_split(split: Split, transform: Any) -> ImageDataset:
        return create_dataset(
            options.dataset_name,
            options.data_path,
            split,
            transform,
            skip_unreadable_images=options.skip_unreadable_images,
        )

    val_set = open_split("val", eval_transform)
    val_sampler = SpreadSampler(len(val_set), options.epoch_size_val, process)
    val = _loader(val_set, val_sampler, batch_size, options, process)
    if options.phase == "validation":
        return Data(None, val, val_set)
    train_set = open_split("train", train_transform)
    train_sampler = EpochSampler(
        len(train_set), options.epoch_size, batch_size, options.seed, process
    )
    train = _loader(train_set, train_sampler, batch_size, options, process)
    return Data(train, val, val_set)
