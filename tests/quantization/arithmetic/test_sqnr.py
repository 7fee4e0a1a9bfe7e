import math

import pytest
import torch

from edgeailite.quantization.arithmetic.sqnr import decibel, sqnr


def test_sqnr():
    x = torch.randn(1000)
    assert sqnr(x, x) == math.inf
    assert sqnr(x, x * 0.9) == pytest.approx(20.0, abs=1e-4)


def test_decibel_of_nothing_is_finite():
    assert math.isfinite(decibel(0.0, 1.0))
