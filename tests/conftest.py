import random

import numpy as np
import pytest
import torch

import edgeailite  # noqa: F401 -- first: it makes torchvision importable beside a CPU torch
from tests.speed import leave_out_traces, share_exporter_tables, spare_the_collector


def pytest_addoption(parser):
    parser.addoption(
        "--update-goldens", action="store_true", help="rewrite the stored lists in tests/goldens"
    )


def pytest_collection_finish():
    spare_the_collector()
    leave_out_traces()


@pytest.fixture(autouse=True)
def _seed():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 -- seeds code that uses the global generator
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _exporter_tables():
    share_exporter_tables()
