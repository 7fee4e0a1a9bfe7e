"""Registry of integer forms: float ONNX operators as integer operators of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from edgeailite.quantization.export.proto import ProtoGraph, attributes

CONTRIB = "com.microsoft"  # domain of ONNX Runtime's own operators


@dataclass(frozen=True)
class Operand:
    """Names of a quantized tensor's integers, scale and zero point."""

    tensor: str
    scale: str
    zero_point: str

    @property
    def names(self) -> list[str]:
        """List the names as integer operators take them."""
        return [self.tensor, self.scale, self.zero_point]


@dataclass(frozen=True)
class Site:
    """A float operator between quantize nodes.

    Attributes:
        graph: The graph it is in.
        node: The float operator.
        quantize: The QuantizeLinear behind it.
        output: Name of the integers that the form makes.
    """

    graph: ProtoGraph
    node: NodeProto
    quantize: NodeProto
    output: str

    @property
    def result_grid(self) -> list[str]:
        """Names of the result's scale and zero point."""
        return list(self.quantize.input[1:3])

    def activation(self, i: int) -> Operand | None:
        """Return input `i` if it is a dequantized tensor of the result's type with one scale."""
        operand = self.operand(self.node.input[i])
        if operand is None or operand.tensor in self.graph.initializers:
            return None
        scale, zero_point = map(self.graph.constant, (operand.scale, operand.zero_point))
        wanted = self.graph.constant(self.quantize.input[2])
        if scale is None or scale.size != 1 or zero_point is None or wanted is None:
            return None
        return operand if zero_point.dtype == wanted.dtype == np.uint8 else None

    def weight(self, name: str) -> Operand | None:
        """Return a tensor if it is dequantized from constant 8-bit integers."""
        operand = self.operand(name)
        value = None if operand is None else self.graph.constant(operand.tensor)
        return operand if value is not None and value.dtype == np.int8 else None

    def operand(self, name: str) -> Operand | None:
        """Return the operand of the DequantizeLinear that makes a tensor, if one does."""
        maker = self.graph.makers.get(name)
        if maker is None or maker.op_type != "DequantizeLinear" or len(maker.input) < 3:
            return None
        return Operand(*maker.input)

    def bias(self, name: str, x: Operand, weight: Operand) -> str | None:
        """Return the name of the int32 bias if its scale is ``s_x * s_w``."""
        operand = self.operand(name)
        if operand is None:
            return None
        value, scale = map(self.graph.constant, (operand.tensor, operand.scale))
        factors = [self.graph.constant(s) for s in (x.scale, weight.scale)]
        if value is None or scale is None or factors[0] is None or factors[1] is None:
            return None
        fits = value.dtype == np.int32 and np.all(scale == factors[0] * factors[1])
        return operand.tensor if fits else None

    def write(
        self, operator: str, inputs: list[str], domain: str = "", output: str = "", **values: Any
    ) -> NodeProto:
        """Make a node of the form."""
        output = output or self.output
        return helper.make_node(
            operator, inputs, [output], f"{output}/{operator}", domain=domain, **values
        )


IntegerForm = Callable[[Site], list[NodeProto]]
_FORMS: dict[str, IntegerForm] = {}


def integer_form(*operators: str) -> Callable[[IntegerForm], IntegerForm]:
    """Register the decorated function as the integer form of ONNX operators.

    It gets a :class:`Site` and returns the nodes to write instead, none if the site has no integer
    form.

    Raises:
        ValueError: An operator has a form already.
    """
    for operator in operators:
        if operator in _FORMS:
            raise ValueError(
                f"ONNX operator {operator!r} has an integer form already, "
                f"{_FORMS[operator].__name__}. Extend that function."
            )

    def register(form: IntegerForm) -> IntegerForm:
        _FORMS.update(dict.fromkeys(operators, form))
        return form

    return register


def find_integer_form(operator: str) -> IntegerForm | None:
    """Return the function that writes an ONNX operator's integer form; None if there is none."""
    return _FORMS.get(operator)


@integer_form("Conv")
def _convolution(site: Site) -> list[NodeProto]:
    x, weight = site.activation(0), site.weight(site.node.input[1])
    if x is None or weight is None:
        return []
    inputs = [*x.names, *weight.names, *site.result_grid]
    if len(site.node.input) > 2:
        bias = site.bias(site.node.input[2], x, weight)
        if bias is None:
            return []
        inputs.append(bias)
    return [site.write("QLinearConv", inputs, **attributes(site.node))]


@integer_form("Gemm")
def _gemm(site: Site) -> list[NodeProto]:
    x, weight, values = site.activation(0), site.weight(site.node.input[1]), attributes(site.node)
    if x is None or weight is None or values.get("transA", 0) or values.get("alpha", 1) != 1:
        return []
    bias: str | None = ""
    if len(site.node.input) > 2:
        bias = site.bias(site.node.input[2], x, weight) if values.get("beta", 1) == 1 else None
    if bias is None:
        return []
    inputs = [*x.names, *weight.names, bias, *site.result_grid]
    trans_b = int(values.get("transB", 0))
    return [site.write("QGemm", inputs, CONTRIB, alpha=1.0, transA=0, transB=trans_b)]


def _transposed_weight(site: Site, name: str) -> Operand | None:
    """Return the weight of a linear layer.

    The exporter transposes it behind its DequantizeLinear.
    """
    maker = site.graph.makers.get(name)
    if maker is None or maker.op_type != "Transpose":
        return None
    weight = site.weight(maker.input[0])
    value = None if weight is None else site.graph.constant(weight.tensor)
    return weight if value is not None and value.ndim == 2 else None


@integer_form("MatMul")
def _matmul(site: Site) -> list[NodeProto]:
    x, y = site.activation(0), site.activation(1)
    weight = None if y is not None else _transposed_weight(site, site.node.input[1])
    if x is None or (y is None and weight is None):
        return []
    if weight is not None:
        value = site.graph.constant(weight.tensor)
        assert value is not None
        name = site.graph.add_constant(f"{weight.tensor}.transposed", value.T.copy())
        y = Operand(name, weight.scale, weight.zero_point)
    assert y is not None
    return [site.write("QLinearMatMul", [*x.names, *y.names, *site.result_grid])]


def _linear_on_sequences(site: Site) -> list[NodeProto]:
    """Write MatMul and Add of a bias, which QLinearMatMul lacks, as QGemm over all positions."""
    graph = site.graph
    product = graph.makers.get(site.node.input[0])
    shape = graph.shape(site.node.output[0])
    if product is None or product.op_type != "MatMul" or shape is None or shape.count(None) > 1:
        return []
    inner = Site(graph, product, site.quantize, site.output)
    x, weight = inner.activation(0), _transposed_weight(inner, product.input[1])
    if x is None or weight is None or len(graph.readers[product.output[0]]) != 1:
        return []
    bias, value = site.bias(site.node.input[1], x, weight), graph.constant(weight.tensor)
    if bias is None or value is None:
        return []
    rows, flat = graph.fresh(f"{site.output}.rows"), graph.fresh(f"{site.output}.flat")
    targets = [
        graph.add_constant(f"{site.output}.{name}", np.array(dims, dtype=np.int64))
        for name, dims in (
            ("rows_shape", [-1, value.shape[1]]),
            ("shape", [-1 if d is None else d for d in shape]),
        )
    ]
    inputs = [rows, x.scale, x.zero_point, *weight.names, bias, *site.result_grid]
    return [
        site.write("Reshape", [x.tensor, targets[0]], output=rows),
        site.write("QGemm", inputs, CONTRIB, output=flat, alpha=1.0, transA=0, transB=1),
        site.write("Reshape", [flat, targets[1]]),
    ]


@integer_form("Add")
def _add(site: Site) -> list[NodeProto]:
    return _elementwise(site) or _linear_on_sequences(site)


@integer_form("Mul")
def _elementwise(site: Site) -> list[NodeProto]:
    a, b = site.activation(0), site.activation(1)
    if a is None or b is None:
        return []
    inputs = [*a.names, *b.names, *site.result_grid]
    return [site.write(f"QLinear{site.node.op_type}", inputs, CONTRIB)]


@integer_form("Concat")
def _concat(site: Site) -> list[NodeProto]:
    operands = [site.activation(i) for i in range(len(site.node.input))]
    names = [name for operand in operands if operand is not None for name in operand.names]
    if None in operands:
        return []
    values = attributes(site.node)
    return [site.write("QLinearConcat", [*site.result_grid, *names], CONTRIB, **values)]


@integer_form("AveragePool")
def _average_pool(site: Site) -> list[NodeProto]:
    x, values = site.activation(0), attributes(site.node)
    if x is None or any(d != 1 for d in values.pop("dilations", [])):
        return []
    return [site.write("QLinearAveragePool", [*x.names, *site.result_grid], CONTRIB, **values)]


@integer_form("GlobalAveragePool", "ReduceMean")
def _global_average(site: Site) -> list[NodeProto]:
    """Write GlobalAveragePool, or ReduceMean over all axes behind the channels."""
    x, shape = site.activation(0), site.graph.shape(site.node.input[0])
    if x is None or shape is None or len(shape) < 3 or None in shape[2:]:
        return []
    keeps = True
    if site.node.op_type == "ReduceMean":
        axes = site.graph.constant(site.node.input[1]) if len(site.node.input) > 1 else None
        spatial = list(range(2, len(shape)))
        if axes is None or sorted(int(a) % len(shape) for a in axes) != spatial:
            return []
        keeps = bool(attributes(site.node).get("keepdims", 1))
    if not _mean_is_exact(site, x, int(np.prod([d for d in shape[2:] if d is not None]))):
        return []
    operator, inputs = "QLinearGlobalAveragePool", [*x.names, *site.result_grid]
    if keeps:
        return [site.write(operator, inputs, CONTRIB, channels_last=0)]
    pooled = site.graph.fresh(f"{site.output}.pooled")
    return [
        site.write(operator, inputs, CONTRIB, pooled, channels_last=0),
        site.write("Squeeze", [pooled, site.node.input[1]]),
    ]


def _mean_is_exact(site: Site, x: Operand, count: int) -> bool:
    """Return True if the integer operator rounds every possible sum as ``sum / count`` does.

    It multiplies the sum by ``s_x / (s_y * count)``. For a count that is no power of two that may
    put a tie on the other side.
    """
    names = (x.scale, x.zero_point, site.quantize.input[1])
    scale, zero_point, result_scale = (site.graph.constant(name) for name in names)
    assert scale is not None
    assert zero_point is not None
    assert result_scale is not None
    low = -int(zero_point) * count
    sums = np.arange(low, low + 255 * count + 1, dtype=np.float32)
    count32 = np.float32(count)
    means = np.rint((sums * scale / count32) / result_scale)
    return bool(np.array_equal(means, np.rint(sums * (scale / (result_scale * count32)))))
