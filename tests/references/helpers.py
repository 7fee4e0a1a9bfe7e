"""What tests of the scripts share."""

import json
import multiprocessing
import os
import socket

import pytest
import torch

from references.edgeailite.engine.run_folder import load_checkpoint

# Since 3.12 Python warns of threads in the process that is forked.
forks = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


def read_result(folder):
    return json.loads((folder / "result.json").read_text())


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def assert_same_run(one, other):
    a, b = load_checkpoint(one), load_checkpoint(other)
    assert a.keys() == b.keys()
    for name in a.keys() - {"options"}:
        assert equal(a[name], b[name]), name
    assert read_result(one)["val"] == read_result(other)["val"]


def start(main, arguments, environment=None):
    """Start a script in a process that is forked: a new one takes seconds to import torch."""

    def run():
        torch.set_num_threads(1)
        os.environ.update(environment or {})
        main(arguments)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def run_in_two_processes(main, arguments):
    """Run a script as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    started = []
    for rank in ("0", "1"):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        started.append(start(main, arguments, place | own))
    for process in started:
        process.join(timeout=300)
        process.kill()
    assert [process.exitcode for process in started] == [0, 0]
