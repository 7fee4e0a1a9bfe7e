"""What tests of the scripts share."""

import json

import torch

from references.edgeailite.engine.run_folder import load_checkpoint


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
