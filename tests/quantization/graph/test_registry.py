import pytest
import torch
from torch import nn

from edgeailite.quantization.graph import registry, traits
from edgeailite.quantization.graph.capture import capture
from edgeailite.quantization.graph.patterns import clamp_bounds
from edgeailite.quantization.graph.registry import (
    OPERATIONS,
    operation_of_function,
    register_operation,
)

TABLES = ("OPERATIONS", "_BY_MODULE", "_BY_FUNCTION", "_BY_METHOD", "_BY_TYPE_NAME")


@pytest.fixture(autouse=True)
def _tables_as_before():
    tables = [getattr(registry, name) for name in TABLES]
    before = [dict(table) for table in tables]
    yield
    for table, rows in zip(tables, before, strict=True):
        table.clear()
        table.update(rows)


def test_a_call_of_another_operation_registers_nothing():
    with pytest.raises(ValueError, match="is a call of operation 'add' and cannot be registered"):
        register_operation("other", traits.ARITHMETIC, functions=(torch.cumsum, torch.add))
    assert "other" not in OPERATIONS
    assert operation_of_function(torch.cumsum) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"onnx": ("Neg",)}, "has onnx=.*which needs the trait moves_values"),
        ({"bounds": (0.0, 1.0)}, "has bounds, which need the trait is_activation"),
    ],
)
def test_fields_that_their_traits_forbid(options, message):
    with pytest.raises(ValueError, match=message):
        register_operation("other", traits.ARITHMETIC, **options)


@pytest.mark.parametrize("field", ["aliases", "attributes"])
def test_other_names_are_those_of_parameters(field):
    names = {"axis": "dims"} if field == "aliases" else {"dims": "axis"}
    with pytest.raises(ValueError, match="has attributes or aliases of dims; its parameters are i"):
        register_operation("other", traits.MOVE, "input, dim", **{field: names})
    assert "other" not in OPERATIONS


class Clip(nn.Module):
    low = -2.0


def test_bounds_are_those_of_the_row():
    operation = register_operation(
        "clip",
        traits.ACTIVATION,
        "input, low",
        bounds=("low", 3.0),
        modules=(Clip,),
    )
    node = list(capture(nn.Sequential(Clip())).graph.nodes)[1]
    assert node.meta["call"].operation is operation
    assert clamp_bounds(node) == (-2.0, 3.0)


def test_calls_are_found_by_their_operation():
    operation = register_operation(
        "clip", traits.ACTIVATION, modules=(Clip,), functions=(torch.trapz,), methods=("trapz",)
    )
    assert registry.calls_of(operation) == {
        "modules": (Clip,),
        "functions": (torch.trapz,),
        "methods": ("trapz",),
        "type_names": (),
    }
