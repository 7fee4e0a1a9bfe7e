"""Random networks are equal in every value; benchmarks/fuzz_exactness.py runs many more."""

from __future__ import annotations

import random

import fuzz_cases
import pytest
from fuzz_cases import Case, run, shrink
from fuzz_exactness import make_case
from fuzz_networks import Network
from fuzz_operations import MAKERS, grow
from fuzz_seeds import SEEDS

from edgeailite.quantization.graph.calls import operation_of
from edgeailite.quantization.graph.capture import capture
from edgeailite.quantization.graph.model import graph_of
from edgeailite.quantization.graph.moves import PAD_BELOW
from edgeailite.quantization.graph.registry import OPERATIONS
from edgeailite.quantization.graph.structure import Example
from edgeailite.quantization.targets.registry import get_target

TARGET = get_target("onnx_runtime")
COMPUTED = [
    row.name for row in OPERATIONS.values() if TARGET.computes(row) or row.traits.moves_values
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
def test_every_row_that_is_computed_is_grown():
    assert sorted(set(COMPUTED) - MAKERS.keys()) == []
    # A call is a padding below when it is prepared, and one with a value before.
    missing, rng = set(COMPUTED) - {PAD_BELOW.name}, random.Random(0)
    for _ in range(40):
        turn = rng.sample(sorted(missing), min(8, len(missing)))
        network = grow(rng, turn, 1)
        graph = graph_of(capture(network.build(), (), Example(network.batch(2), {})))
        missing -= {operation_of(node).name for node in graph.nodes}
        if not missing:
            break
    assert sorted(missing) == []


@pytest.mark.parametrize("index", [1, 2, 5])
def test_random_network_is_equal_in_every_value(index):
    case = make_case(5, index)
    outcome = run(case)
    assert outcome.failure == "", f"{outcome.error or outcome.differences}\n{case}"
    assert outcome.values > 0


@pytest.mark.parametrize("found", list(SEEDS))
def test_network_that_failed_once_is_equal_in_every_value(found):
    outcome = run(SEEDS[found])
    assert not outcome.error
    assert not any(outcome.differences.values()), outcome.differences
    assert outcome.levels > 2


def test_source_of_a_network_is_read_back():
    network = make_case(1, 0).network
    assert Network.read(network.inputs, network.source) == network


def test_failing_network_shrinks_to_the_line_that_fails(monkeypatch):
    def fails(case):
        found = fuzz_cases.Outcome()
        found.error = "verify: wrong" if "sigmoid(v0)" in case.network.source else ""
        return found

    monkeypatch.setattr(fuzz_cases, "run", fails)
    lines = {"v0": "F.relu(x0)", "v1": "torch.sigmoid(v0)", "v2": "v1 + v0", "v3": "v2.flip(1)"}
    case = Case(Network({"x0": (3, 6, 6)}, {}, lines, ("v3", "v0")))
    assert list(shrink(case, "verify").network.lines) == ["v0", "v1"]
