import logging

import pytest
import torch

from references.edgeailite.engine import run_folder


def _checkpoint(value):
    return {"model": {"w": torch.full((1000,), value)}, "epoch": 1, "optimizer": {}}


def test_save_and_load_checkpoint(tmp_path):
    run_folder.save_checkpoint(tmp_path / "checkpoint.pth", _checkpoint(2.0))
    for path in (tmp_path, tmp_path / "checkpoint.pth"):
        assert torch.equal(run_folder.load_checkpoint(path)["model"]["w"], torch.full((1000,), 2.0))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pth"]


def test_interrupted_write_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pth"
    run_folder.save_checkpoint(path, _checkpoint(1.0))
    real_save = torch.save

    def cut_off(content, file):
        real_save(content, file)
        file.write_bytes(file.read_bytes()[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run_folder.save_checkpoint(path, _checkpoint(2.0))
    assert run_folder.load_checkpoint(path)["model"]["w"][0] == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pth"]


def test_load_checkpoint_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No checkpoint '.*checkpoint\.pth' to resume"):
        run_folder.load_checkpoint(tmp_path)


@pytest.mark.parametrize("content", ["truncated", b"", b"no checkpoint at all"])
def test_load_checkpoint_unreadable(tmp_path, content):
    path = tmp_path / "checkpoint.pth"
    run_folder.save_checkpoint(path, _checkpoint(1.0))
    path.write_bytes(path.read_bytes()[:900] if content == "truncated" else content)
    with pytest.raises(ValueError, match=r"Can't read checkpoint .* truncated or no PyTorch"):
        run_folder.load_checkpoint(path)


def test_load_checkpoint_of_weights_alone(tmp_path):
    run_folder.save_checkpoint(tmp_path / "best.pth", {"model": {}})
    with pytest.raises(ValueError, match=r"holds weights but no training state.*--pretrained"):
        run_folder.load_checkpoint(tmp_path / "best.pth")


def test_prepare_run_folder_refuses_another_run(tmp_path):
    run_folder.prepare_run_folder(tmp_path / "run", resume=False)
    run_folder.save_checkpoint(tmp_path / "run" / "checkpoint.pth", _checkpoint(1.0))
    run_folder.prepare_run_folder(tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match=r"already holds a run\. Continue it with --resume"):
        run_folder.prepare_run_folder(tmp_path / "run", resume=False)


def test_check_same_run_other_model():
    before, now = {"model_name": "a"}, {"model_name": "b", "resume": "run"}
    with pytest.raises(ValueError, match=r"another run \(--model_name a -> b\)"):
        run_folder.check_same_run(before, now)


def test_check_same_run_warns_of_other_numbers(caplog):
    run_folder.logger.propagate = True
    with caplog.at_level(logging.WARNING):
        run_folder.check_same_run({"lr": 0.1, "workers": 1}, {"lr": 0.2, "workers": 2})
    assert "--lr 0.1 -> 0.2" in caplog.text
    assert "workers" not in caplog.text


def test_default_run_folder():
    folder = run_folder.default_run_folder("digits", "timm/resnet18", "training", True)
    assert folder.parent.as_posix() == "data/checkpoints/digits/timm_resnet18"
    assert folder.name.endswith("_training_quantize")


def test_log_goes_to_the_file_of_the_main_process(tmp_path, capsys):
    for is_main in (True, False):
        run_folder.start_log(tmp_path, is_main=is_main)
        logging.getLogger("edgeailite.test").info("hello from %s", is_main)
        run_folder.stop_log()
    assert "hello from True" in (tmp_path / "run.log").read_text()
    assert capsys.readouterr().out == "hello from True\n"
