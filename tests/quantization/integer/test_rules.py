"""Registration of conversion rules; a target without a rule says which one it lacks."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from edgeailite.quantization.graph.model import target_of
from edgeailite.quantization.integer.common_rules import COMMON
from edgeailite.quantization.integer.rules import Rules
from edgeailite.quantization.prepare.prepare import prepare
from edgeailite.quantization.prepare.qconfig import make_policy
from edgeailite.quantization.targets.onnx_runtime.conversion import RULES, place_quantizer
from edgeailite.quantization.targets.onnx_runtime.target import OnnxRuntime

IMAGES = torch.rand(2, 3, 8, 8)


@dataclass(frozen=True)
class Target(OnnxRuntime):
    name: ClassVar[str] = "test"
    rules: Rules = RULES


def converted(rules):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 1))
    model = prepare(network, make_policy("WC8SYMP2_AT8SYMP2"), Target(rules=rules), (IMAGES,))
    model(IMAGES)
    return target_of(model).convert(model.eval())


def layer_rules(base):
    rules = Rules(base)
    rules.converts("convolution")(RULES._fused["convolution"].convert)
    return rules


def test_a_target_without_a_rule_for_quantizers():
    with pytest.raises(ValueError, match=r"no rule for a quantizer that is placed alone.*Register"):
        converted(layer_rules(COMMON))


def test_a_target_without_a_rule_for_moves():
    rules = layer_rules(COMMON)
    rules.places("quantizer")(place_quantizer)
    with pytest.raises(ValueError, match=r"no rule for operations that move values. Register"):
        converted(rules)


def test_a_rule_of_its_own_places_a_move():
    rules, placed = Rules(RULES), []

    @rules.places("max_pool")
    def place_max_pool(converter, node):
        placed.append(node.name)
        converter.rules.moves()(converter, node)

    assert torch.equal(converted(rules)(IMAGES), converted(RULES)(IMAGES))
    assert len(placed) == 1


def test_a_target_has_one_rule_for_moves():
    with pytest.raises(ValueError, match="has a rule for operations that move values already"):
        RULES.places_moves(place_quantizer)
    with pytest.raises(ValueError, match="'add' has a conversion rule of this target already"):
        RULES.converts("add")(place_quantizer)
