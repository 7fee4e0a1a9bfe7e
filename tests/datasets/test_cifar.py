import pickle
from urllib.error import URLError

import numpy as np
import pytest

from edgeailite.datasets import create_dataset
from edgeailite.datasets.cifar import CIFAR10, CIFAR100


@pytest.mark.parametrize("name", ["cifar10_classification", "cifar100_classification"])
def test_cifar_without_a_network(name, tmp_path, monkeypatch):
    def refuse(self):
        raise URLError("no network")

    monkeypatch.setattr(CIFAR10, "download", refuse)
    with pytest.raises(FileNotFoundError, match=r"can't be downloaded.*no network.*Fetch https?:"):
        create_dataset(name, tmp_path, "train")


def _write_batch(path, labels, meta, classes):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.zeros((len(labels["data"]), 3072), dtype=np.uint8)
    path.write_bytes(pickle.dumps(labels | {"data": data}))
    (path.parent / meta[0]).write_bytes(pickle.dumps({meta[1]: classes}))


@pytest.mark.parametrize(
    ("name", "family", "label_key"),
    [
        ("cifar10_classification", CIFAR10, "labels"),
        ("cifar100_classification", CIFAR100, "fine_labels"),
    ],
)
def test_cifar_reads_the_validation_batch(name, family, label_key, tmp_path, monkeypatch):
    monkeypatch.setattr(family, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    meta = (family.meta["filename"], family.meta["key"])
    path = tmp_path / family.base_folder / family.test_list[0][0]
    _write_batch(path, {label_key: [1, 0], "data": [0, 0]}, meta, ["a", "b"])
    dataset = create_dataset(name, tmp_path, "val", lambda image: image.size)
    assert dataset.classes == ["a", "b"]
    assert [dataset[i] for i in range(2)] == [((32, 32), 1), ((32, 32), 0)]
