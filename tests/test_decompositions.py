"""Files of an exporter that is made faster are those of torch's own."""

from collections.abc import Iterator
from typing import Any

import onnx
import pytest
from torch.onnx._internal.exporter import _fx_passes
from torch.onnx._internal.fx.passes import type_promotion

from tests.decompositions import one_by_one
from tests.quantization.bundle import bundle, inputs_of
from tests.quantization.helpers import batch, seed_everything, trained
from tests.quantization.zoo import ZOO
from tests.speed import share_exporter_tables

CHANGED = {
    _fx_passes: "decompose_with_registry",
    type_promotion._TypePromotionInterpreter: "run_node",
}


def content(proto: onnx.ModelProto) -> Iterator[Any]:
    """What a file computes; values are numbered in the order in which they occur."""
    tensors = {t.name: (t.data_type, t.dims, t.raw_data) for t in proto.graph.initializer}
    numbers: dict[str, int] = {}

    def values(names):
        return [tensors.get(n) or (n and numbers.setdefault(n, len(numbers))) for n in names]

    yield [(v.name, v.type) for v in proto.graph.input], values(v.name for v in proto.graph.input)
    for node in proto.graph.node:
        yield node.op_type, list(node.attribute), values(node.input), values(node.output)
    yield values(v.name for v in proto.graph.output)


def refuse(program, registry):
    raise AssertionError("The graph holds what is left to torch.")


# Composite operators of one value, of several, of an output of the file; sums in place; attention.
@pytest.mark.parametrize(
    ("names", "dynamic_batch"),
    [
        (("adaptive_pools", "shuffle_unit", "linear_on_sequences"), True),
        (("residual", "transformer"), False),
    ],
)
def test_files_are_those_of_torch(names, dynamic_batch, monkeypatch, tmp_path):
    seed_everything(0)
    made = {name: trained(ZOO[name].make(), ZOO[name].shapes) for name in names}
    networks = {name: (made[name].convert(), batch(ZOO[name].shapes, 2)) for name in names}
    share_exporter_tables()  # the exporter is loaded with this file
    torchs = {owner: getattr(owner, name).original for owner, name in CHANGED.items()}
    ours = {owner: getattr(owner, name) for owner, name in CHANGED.items()}
    ours[_fx_passes] = one_by_one(refuse)
    files = []
    for number, functions in enumerate((torchs, ours)):
        for owner, function in functions.items():
            monkeypatch.setattr(owner, CHANGED[owner], function)
        path = tmp_path / f"{number}.onnx"
        bundle(networks).export(inputs_of(networks), path, dynamic_batch=dynamic_batch)
        files.append(list(content(onnx.load(path))))
    assert files[0] == files[1]
