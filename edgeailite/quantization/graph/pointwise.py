"""Pointwise functions, of one value each: a table of their results is all there is to know."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import nn

from edgeailite.quantization.graph import traits, variants
from edgeailite.quantization.graph.registry import register_operation as row

_MODULES = (
    *(nn.Sigmoid, nn.Tanh, nn.SiLU, nn.Mish, nn.GELU, nn.Hardswish, nn.Hardsigmoid, nn.ELU),
    *(nn.CELU, nn.SELU, nn.LeakyReLU, nn.Softplus, nn.LogSigmoid, nn.Softsign, nn.Tanhshrink),
    *(nn.Hardshrink, nn.Softshrink, nn.Threshold),
)
_NAMES_OF_FUNCTIONS = (
    *("silu", "mish", "gelu", "hardswish", "hardsigmoid", "elu", "elu_", "celu", "celu_", "selu"),
    *("selu_", "leaky_relu", "leaky_relu_", "softplus", "logsigmoid", "softsign", "tanhshrink"),
    *("hardshrink", "softshrink", "threshold", "threshold_", "sigmoid", "tanh"),
)
# Functions of torch that are methods of a tensor too.
_NAMES_OF_BOTH = (
    *("sigmoid", "tanh", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt"),
    *("reciprocal", "abs", "neg", "square", "sin", "cos", "tan", "asin", "acos", "atan", "sinh"),
    *("cosh", "erf", "erfc", "floor", "ceil", "round", "trunc", "frac", "sign"),
)
POINTWISE = row(
    "pointwise",
    traits.POINTWISE,
    variant=variants.of_one_value,
    modules=_MODULES,
    functions=(
        *dict.fromkeys(getattr(F, name) for name in _NAMES_OF_FUNCTIONS),
        # What torch.export records.
        *(getattr(torch._C._nn, n) for n in _NAMES_OF_FUNCTIONS if hasattr(torch._C._nn, n)),
        *(getattr(torch, name) for name in _NAMES_OF_BOTH),
        operator.neg,
    ),
    methods=(*_NAMES_OF_BOTH, "sigmoid_", "tanh_", "exp_", "sqrt_", "abs_", "neg_"),
)
"""Also sums, products, quotients and powers of a value and a number."""
