"""Every module of the integer graph has a rule, or is refused by name."""

import pytest
import torch
from torch import nn

from edgeailite.quantization import PTCFxModule, QuantCalibrateModule
from edgeailite.quantization.integer import exact_sums, normalizations, operators
from edgeailite.quantization.integer.grid import IntegerOperator
from edgeailite.quantization.targets.c import files  # noqa: F401 -- its rules
from edgeailite.quantization.targets.c.copies import nested
from edgeailite.quantization.targets.c.registry import RULES

REFUSED = {
    operators.IntegerDiv,
    exact_sums.IntegerFold,
    normalizations.IntegerNormalization,
}
BASES = {operators.TwoOperands, exact_sums.ExactSums}


def concrete(base):
    for kind in base.__subclasses__():
        if kind.__module__.startswith("edgeailite.quantization.integer"):
            yield kind
        yield from concrete(kind)


def test_every_module_of_the_integer_graph_has_an_answer():
    kinds = {k for k in concrete(IntegerOperator) if k.__name__.startswith(("Integer", "Power"))}
    assert len(kinds) > 15
    without = {k for k in kinds if not any(t in RULES for t in k.__mro__)}
    assert without == REFUSED


class Divided(nn.Module):
    def forward(self, x):
        return x[:, :1] / x[:, 1:]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            nn.Sequential(nn.Conv2d(2, 4, 1), nn.GroupNorm(2, 4)),
            "'1.activation_q' .*: there is no kernel for IntegerNormalization",
        ),
        (Divided(), "'truediv_q' .*: there is no kernel for IntegerDiv"),
        (nn.Sequential(nn.Unflatten(1, (1, 2)), nn.Conv3d(1, 2, 1)), "'1' .*: it is 3-d"),
    ],
)
def test_an_operation_without_a_rule_is_refused_before_anything_is_written(model, reason, tmp_path):
    x = torch.rand(4, 2, 6, 6) + 0.5
    wrapper = PTCFxModule(model, qconfig_type="WC8_AT8", example_inputs=x).calibrate([x])
    with pytest.raises(ValueError, match=rf"{reason}.*docs/firmware.md lists what is written"):
        wrapper.export_c(x, tmp_path)
    assert not list(tmp_path.iterdir())


def test_results_and_inputs_in_float_are_refused(tmp_path):
    x = torch.randn(4, 8)
    for option, reason in (
        ({"quantize_out": False}, "its result is in float: no quantizer follows it"),
        ({"quantize_in": False}, "'0' cannot .*: FloatInputLayer runs in float"),
    ):
        wrapper = QuantCalibrateModule(nn.Sequential(nn.Linear(8, 4)), x, **option).calibrate([x])
        with pytest.raises(ValueError, match=reason):
            wrapper.export_c(x, tmp_path)


def test_a_name_is_an_identifier(tmp_path):
    x = torch.randn(4, 8)
    wrapper = QuantCalibrateModule(nn.Sequential(nn.Linear(8, 4)), x).calibrate([x])
    for name in ("8bit", "größe", ""):
        with pytest.raises(ValueError, match=f"name is '{name}'; it must be a C identifier"):
            wrapper.export_c(x, tmp_path, name)
    for name in ("main", "edgeailite_kernels"):
        with pytest.raises(ValueError, match=f"name is '{name}', as a file beside it is called"):
            wrapper.export_c(x, tmp_path, name)
    assert not list(tmp_path.iterdir())


def test_padding_with_minus_infinity_is_refused(tmp_path):
    pool = (nn.ConstantPad2d((0, 1, 0, 1), -torch.inf), nn.MaxPool2d(2), nn.Conv2d(4, 2, 1))
    x = torch.randn(2, 3, 7, 7)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), *pool)
    wrapper = QuantCalibrateModule(network, x).calibrate([x])
    with pytest.raises(ValueError, match=r"'1' cannot .*: it pads with minus infinity"):
        wrapper.export_c(x, tmp_path)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_loops_give_the_places_of_a_permutation(order):
    places = torch.arange(60).reshape(3, 4, 5).permute(order).reshape(-1)
    loops, found = nested(places), torch.zeros(1, dtype=torch.int64)
    for count, step in loops:
        found = (found[:, None] + torch.arange(count) * step).reshape(-1)
    assert torch.equal(found, places)
    assert len(loops) <= 3


def test_places_without_a_rule_have_no_loops():
    assert nested(torch.tensor([0, 1, 3, 7, 2])) is None
