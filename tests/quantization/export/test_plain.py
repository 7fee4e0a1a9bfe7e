"""A prepared model with a stand-in for each quantizer."""

import torch
from torch import nn

from edgeailite.quantization.export.plain import plain_model
from edgeailite.quantization.graph.model import module_of
from edgeailite.quantization.integer.float_modules import FloatInputLayer
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.modules.layer import QuantLayer
from edgeailite.quantization.modules.pact2 import quantizers
from tests.quantization.helpers import batch, trained
from tests.quantization.zoo import ZOO


def test_the_quantizers_themselves_as_stand_ins_give_the_simulation():
    case = ZOO["residual"]
    wrapper, inputs = trained(case.make(), case.shapes), batch(case.shapes, 4)
    before = {k: v.clone() for k, v in wrapper.module.state_dict().items()}
    plain = plain_model(wrapper.module, lambda quantizer: quantizer)
    assert torch.equal(plain(*inputs), wrapper(*inputs).detach())
    called = [module_of(plain, node) for node in plain.graph.find_nodes(op="call_module")]
    assert not [m for m in called if isinstance(m, QuantLayer | nn.BatchNorm2d)]
    layers = [m.layer_path for m in called if isinstance(m, FloatInputLayer)]
    assert layers == ["conv1", "conv2", "conv3", "fc"]
    for key, value in wrapper.module.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_stand_ins_know_whose_place_they_took():
    case = ZOO["residual"]
    wrapper = trained(case.make(), case.shapes)
    seen: list[FakeQuantize] = []

    def stand_in(quantizer: FakeQuantize) -> nn.Module:
        seen.append(quantizer)
        return nn.Identity()

    plain = plain_model(wrapper.module, stand_in)
    paths = [m.quantizer_path for m in plain.modules() if hasattr(m, "quantizer_path")]
    assert set(paths) == set(quantizers(wrapper.module))
    assert len(seen) == len(paths)
