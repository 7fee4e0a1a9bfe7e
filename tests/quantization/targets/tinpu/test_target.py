import pytest

from edgeailite.quantization.targets.tinpu.target import Tinpu


@pytest.mark.parametrize("bits", [1, 17])
def test_multipliers_have_a_few_bits(bits):
    with pytest.raises(ValueError, match=rf"input_multiplier_bits is {bits}; allowed: 2 to 16"):
        Tinpu(input_multiplier_bits=bits)
