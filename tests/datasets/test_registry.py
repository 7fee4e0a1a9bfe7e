import pytest

from edgeailite.datasets import create_dataset, list_datasets, register_dataset


def test_list_datasets_names_all():
    assert {
        "image_folder_classification",
        "imagenet_classification",
        "cifar10_classification",
        "cifar100_classification",
    } <= set(list_datasets())


def test_register_dataset_refuses_a_taken_name():
    with pytest.raises(ValueError, match=r"'cifar10_classification' is registered already"):
        register_dataset("cifar10_classification")(object)


def test_create_dataset_unknown_name_gives_the_nearest(tmp_path):
    with pytest.raises(ValueError, match=r"Did you mean image_folder_classification") as error:
        create_dataset("image_folder_clasification", tmp_path, "train")
    assert "cifar100_classification" in str(error.value)
