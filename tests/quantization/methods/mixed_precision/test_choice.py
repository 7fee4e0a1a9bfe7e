import itertools

import pytest

from edgeailite.quantization.methods.mixed_precision.choice import choose_bit_widths
from edgeailite.quantization.methods.mixed_precision.sensitivity import (
    LayerSensitivity,
)

LAYERS = [
    LayerSensitivity("a", 100, {8: 0.001, 4: 0.3, 2: 0.9}),
    LayerSensitivity("b", 1000, {8: 0.002, 4: 0.01, 2: 0.5}),
    LayerSensitivity("c", 333, {8: 0.001, 4: 0.02, 2: 0.04}),
]


@pytest.mark.parametrize("max_bytes", [400, 500, 700, 1000, 1433])
def test_the_choice_is_the_best_of_all(max_bytes):
    best = min(
        sum(layer.errors[b] for layer, b in zip(LAYERS, bits, strict=True))
        for bits in itertools.product((8, 4, 2), repeat=3)
        if sum(layer.num_bytes(b) for layer, b in zip(LAYERS, bits, strict=True)) <= max_bytes
    )
    chosen = choose_bit_widths(LAYERS, max_bytes=max_bytes)
    assert sum(layer.num_bytes(chosen[layer.path]) for layer in LAYERS) <= max_bytes
    assert sum(layer.errors[chosen[layer.path]] for layer in LAYERS) == pytest.approx(best)


def test_a_size_that_is_too_small_is_named():
    with pytest.raises(ValueError, match=r"max_bytes is 300; the smallest these 3 layers .* 359"):
        choose_bit_widths(LAYERS, max_bytes=300)


@pytest.mark.parametrize(("max_bytes", "max_mac_bits"), [(None, 40_000), (1000, 60_000)])
def test_mac_bits_are_a_budget_of_their_own(max_bytes, max_mac_bits):
    layers = [
        LayerSensitivity("a", 100, {8: 0.001, 4: 0.3, 2: 0.9}, 5000),
        LayerSensitivity("b", 1000, {8: 0.002, 4: 0.01, 2: 0.5}, 1000),
        LayerSensitivity("c", 333, {8: 0.001, 4: 0.02, 2: 0.04}, 333),
    ]

    def fits(bits):
        pairs = list(zip(layers, bits, strict=True))
        size = sum(layer.num_bytes(b) for layer, b in pairs)
        macs = sum(layer.mac_bits(b) for layer, b in pairs)
        return macs <= max_mac_bits and (max_bytes is None or size <= max_bytes)

    best = min(
        sum(layer.errors[b] for layer, b in zip(layers, bits, strict=True))
        for bits in itertools.product((8, 4, 2), repeat=3)
        if fits(bits)
    )
    chosen = choose_bit_widths(layers, max_bytes=max_bytes, max_mac_bits=max_mac_bits)
    assert fits([chosen[layer.path] for layer in layers])
    assert sum(layer.errors[chosen[layer.path]] for layer in layers) == pytest.approx(best)
    with pytest.raises(ValueError, match=r"max_mac_bits is 9; the smallest .* can take is 12666"):
        choose_bit_widths(layers, max_mac_bits=9)
