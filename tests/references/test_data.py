import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from references.edgeailite.engine.data import (
    EpochSampler,
    SpreadSampler,
    collate_readable,
    count_images,
    set_epoch,
)
from references.edgeailite.engine.data_classification import build_data
from references.edgeailite.engine.distributed import Process

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("size", "expected"), [(0, 200), (0.1, 20), (1, 200), (7, 7), (900, 200), (0.0001, 1)]
)
def test_count_images(size, expected):
    assert count_images(size, 200) == expected


@given(st.integers(1, 300), st.integers(1, 4), st.integers(1, 16), st.integers(0, 5))
def test_epoch_sampler_shares_are_equal_and_disjoint(num_images, world_size, batch_size, epoch):
    if num_images < world_size:
        return
    shares = []
    for rank in range(world_size):
        sampler = EpochSampler(num_images, 0, batch_size, 1, Process(CPU, rank, world_size))
        sampler.epoch = epoch
        shares.append(list(sampler))
        assert len(shares[-1]) == len(sampler)
    assert len({len(share) for share in shares}) == 1
    union = [index for share in shares for index in share]
    assert len(set(union)) == len(union)
    assert len(shares[0]) % batch_size == 0 or len(shares[0]) < batch_size
    assert set(union) <= set(range(num_images))


def test_epoch_sampler_order_depends_on_seed_and_epoch():
    def order(seed, epoch):
        sampler = EpochSampler(64, 0.5, 8, seed, Process(CPU))
        sampler.epoch = epoch
        return list(sampler)

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)
    assert len(order(1, 2)) == 32


def test_epoch_sampler_fewer_images_than_processes():
    with pytest.raises(ValueError, match=r"An epoch of 1 images is too small for 2 processes"):
        EpochSampler(10, 0.1, 4, 1, Process(CPU, 0, 2))


@given(st.integers(1, 200), st.integers(1, 4), st.floats(0, 1))
def test_spread_sampler_covers_the_data_set_once(num_images, world_size, size):
    shares = [
        list(SpreadSampler(num_images, size, Process(CPU, rank, world_size)))
        for rank in range(world_size)
    ]
    union = sorted(index for share in shares for index in share)
    assert len(set(union)) == len(union) == count_images(size, num_images)
    gaps = [b - a for a, b in itertools.pairwise(union)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_collate_readable_leaves_out_skipped_images():
    images, targets = collate_readable([(torch.ones(2), 3), None, (torch.zeros(2), 4)])
    assert images.tolist() == [[1.0, 1.0], [0.0, 0.0]]
    assert targets.tolist() == [3, 4]


def test_collate_readable_nothing_left():
    with pytest.raises(ValueError, match=r"None of the 2 images of a batch could be read"):
        collate_readable([None, None])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_augmentations_do_not_depend_on_workers_or_history(make_options):
    batches = {}
    for workers in (0, 2):
        data = build_data(make_options("--workers", str(workers)), Process(CPU))
        torch.rand(workers + 1)
        for epoch in (0, 1):
            set_epoch(data.train, epoch)
            batches[workers, epoch] = [images for images, _ in data.train]
    for epoch in (0, 1):
        for a, b in zip(batches[0, epoch], batches[2, epoch], strict=True):
            assert torch.equal(a, b)
    assert not torch.equal(batches[0, 0][0], batches[0, 1][0])


def test_reading_data_leaves_the_random_state_alone(make_options):
    data = build_data(make_options(), Process(CPU))
    before = torch.get_rng_state()
    list(data.train)
    assert torch.equal(torch.get_rng_state(), before)


def test_calibration_reads_training_images_without_augmentation(make_options):
    options = make_options("--phase", "calibration", "--pretrained", "x")
    data = build_data(options, Process(CPU))
    train = data.train.dataset.dataset
    assert "train" in str(train.samples[0][0])
    assert torch.equal(train[0][0], train[0][0])


def test_validation_needs_no_training_set(image_folder, tmp_path, make_options):
    (tmp_path / "val").symlink_to(image_folder / "val")
    options = make_options("--phase", "validation", "--pretrained", "x")
    options = type(options)(**{**vars(options), "data_path": tmp_path})
    data = build_data(options, Process(CPU))
    assert data.train is None
    assert len(data.val.dataset) == 15
