import pytest
import torch

from references.edgeailite.engine import distributed


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_check_gpus_of_this_machine(two_gpus):
    for gpus in (None, (), (0,), (1, 0)):
        distributed.check_gpus(gpus)


@pytest.mark.usefixtures("two_gpus")
def test_check_gpus_missing():
    with pytest.raises(ValueError, match=r"--gpus 0 3: there is no GPU 3; this machine has GPUs 0"):
        distributed.check_gpus((0, 3))


def test_check_gpus_without_any(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"there is no GPU 0; this machine has no GPU that PyTo"):
        distributed.check_gpus((0,))


@pytest.mark.usefixtures("two_gpus")
def test_check_gpus_twice():
    with pytest.raises(ValueError, match=r"--gpus 1 1 names a GPU twice"):
        distributed.check_gpus((1, 1))


@pytest.mark.parametrize("gpus", [None, (), (1,)])
def test_start_processes_not_needed(gpus, tmp_path):
    assert not distributed.start_processes(gpus, tmp_path / "script.py", [])


def test_start_processes_runs_the_script_once_per_gpu(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, pathlib, sys\n"
        "pathlib.Path(sys.argv[1], os.environ['RANK']).write_text(os.environ['WORLD_SIZE'])\n"
    )
    assert distributed.start_processes((0, 1), script, [str(tmp_path)])
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["2", "2"]


def test_start_processes_inside_torchrun(tmp_path, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    assert not distributed.start_processes((0, 1), tmp_path / "script.py", [])


@pytest.mark.usefixtures("two_gpus")
def test_select_device():
    assert distributed._select_device(None, 1) == torch.device("cuda:1")
    assert distributed._select_device((1,), 0) == torch.device("cuda:1")
    assert distributed._select_device((), 5) == torch.device("cpu")
    with pytest.raises(ValueError, match=r"Process 1 .* has no GPU: 1 are selected.*--nproc_per"):
        distributed._select_device((0,), 1)


def test_process_group_of_one():
    with distributed.process_group(()) as process:
        assert (process.rank, process.world_size, process.is_main) == (0, 1, True)
        assert process.device == torch.device("cpu")
        assert distributed.from_main("value") == "value"
