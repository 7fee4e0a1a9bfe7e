"""Calls that belong to another row of the table because of their arguments.

An argument that no integer arithmetic computes makes a call ``unknown``: it runs in float, and the
reason in the report names the argument and its value.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

if TYPE_CHECKING:
    from edgeailite.quantization.graph.registry import BoundCall, Variant

_PLACES = "_with_indices"  # rows of results.py

SHAPE_FUNCTIONS, SHAPE_METHODS = (getattr, len), ("size", "dim", "numel", "ndimension")
"""Calls on a tensor that give no tensor."""
CONSTANT_OPERAND = "one operand is a constant or a parameter, which lies on no grid"
"""Reason of targets that have no form of such an operand."""
HIDING = (
    "integers hide values by a constant mask, with -10,000 or less, in front of a softmax alone"
)
"""Reason of ``masked_fill`` and ``where`` that are no such mask."""
LOGARITHM = "log_softmax has no integer form"
"""Reason of what a deployed network leaves out: the order of its operand's values is the same."""
# Attributes of a tensor that are no tensors.
_SIZES_AND_TYPES = frozenset(
    ("shape", "ndim", "dtype", "device", "layout", "requires_grad", "is_cuda", "itemsize", "nbytes")
)


def refused(name: str, value: Any) -> Variant:
    """The unknown row, for the value of an argument that is not computed in integers."""
    return "unknown", f"{name}={_in_words(value)} has no integer form"


def _in_words(value: Any) -> str:
    if contains_node(value):
        return "(computed in the model)"
    return "(a tensor)" if isinstance(value, Tensor) else repr(value)


def is_scalar(value: Any) -> bool:
    """Return True for a number, and for a node whose value is no tensor or a parameter."""
    return not isinstance(value, fx.Node) or value.meta["call"].operation.name == "scalar"


def is_number(value: Any) -> bool:
    """Return True for a number, and for a node that is computed from numbers and known sizes.

    The batch size is none: a file leaves it open.
    """
    if not isinstance(value, fx.Node):
        return isinstance(value, int | float)
    if not is_scalar(value) or value.op == "get_attr" or _is_tensor(value):
        return False
    source, key = (*value.args, None)[:2]
    if value.target == "size" or (
        value.target is operator.getitem and isinstance(source, fx.Node) and _is_shape(source)
    ):
        return isinstance(key, int) and key != 0
    return all(map(is_number, value.all_input_nodes))


def _is_tensor(scalar: fx.Node) -> bool:
    """Return True for what torch makes of numbers, as ``torch.arange(x.shape[1])``."""
    if "type" in scalar.meta:
        return hasattr(scalar.meta["type"], "dtype")
    owner = getattr(scalar.target, "__module__", None)  # torch's builtins name none
    return scalar.op == "call_function" and owner not in ("_operator", "builtins", "math")


def _is_shape(node: fx.Node) -> bool:
    whole = node.target == "size" and len(node.args) == 1
    return whole or (node.target is getattr and node.args[1] == "shape")


def is_constant(value: Any) -> bool:
    """Return True for a float32 tensor computed from parameters, buffers and sizes alone.

    One that the model overwrites, as a counter of its calls, is none.
    """
    if not isinstance(value, fx.Node) or value.meta["call"].operation.name != "scalar":
        return False
    sources = _tensors_behind(value)
    if any(map(_is_in_place, sources)) or any(map(_is_overwritten, sources)):
        return False
    known = value.meta.get("type")
    if known is not None:
        return getattr(known, "dtype", None) is torch.float32
    return any(getattr(s.meta.get("type"), "dtype", None) is torch.float32 for s in sources)


def _tensors_behind(scalar: fx.Node) -> list[fx.Node]:
    """A scalar and those that it is computed from, but not what a size is the size of."""
    found, pending = dict[fx.Node, None](), [scalar]
    while pending:
        node = pending.pop()
        if node not in found and node.target not in (*SHAPE_FUNCTIONS, *SHAPE_METHODS):
            found[node] = None
            pending += node.all_input_nodes
    return list(found)


def _is_in_place(node: fx.Node) -> bool:
    """Return True for a method or function whose name ends with one underscore."""
    called = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    name = str(called).partition(".")[0]  # of an overload
    return name.endswith("_") and not name.endswith("__")


def _is_overwritten(attribute: fx.Node) -> bool:
    """Return True if the graph writes into a parameter or buffer, or into what is a part of it."""
    if attribute.op != "get_attr":
        return False
    found = set[fx.Node]()
    pending = list(attribute.graph.find_nodes(op="get_attr", target=attribute.target))
    while pending:
        node = pending.pop()
        if any(_is_in_place(user) and user.args[0] is node for user in node.users):
            return True
        found.add(node)
        scalars = (u for u in node.users if "call" in u.meta and is_scalar(u))
        pending += (u for u in scalars if u not in found)
    return False


def contains_node(value: Any) -> bool:
    """Return True for a value that is, or holds, one that is computed in the graph."""
    found: list[fx.Node] = []
    fx.node.map_arg(value, found.append)
    return bool(found)


# ---- parts of a graph ---------------------------------------------------------------------------


def tensor_attribute(call: BoundCall) -> Variant | None:
    """A shape or a type is no tensor; ``x.T`` and ``pair.values`` are."""
    if call.node.target is not getattr or call.node.args[1] in _SIZES_AND_TYPES:
        return None
    return "unknown", f"the attribute .{call.node.args[1]} has no integer form"


# ---- layers -------------------------------------------------------------------------------------


def fixed_options(call: BoundCall) -> Variant | None:
    """A layer's stride, padding, ... are numbers, known before the model runs."""
    tensors = ("input", "weight", "bias", "output_size")
    options = {k: v for k, v in call.arguments.items() if k not in tensors}
    return next((refused(k, v) for k, v in options.items() if contains_node(v)), None)


def running_statistics(call: BoundCall) -> Variant | None:
    """Without running statistics a batch norm has no constants: each batch has its own."""
    if getattr(call.module, "running_mean", None) is not None:
        return None
    return "unknown", (
        "track_running_stats=False normalizes with the statistics of each batch, which are no "
        "constants"
    )


def known_slopes(call: BoundCall) -> Variant | None:
    """The slopes of a PReLU are constants."""
    slopes = call.arguments["weight"]
    known = not isinstance(slopes, fx.Node) or is_constant(slopes)
    return None if known else refused("weight", slopes)


# ---- arithmetic ---------------------------------------------------------------------------------


def between_tensors(call: BoundCall) -> Variant | None:
    """Sums and products are known between two computed tensors, without a factor ``alpha``."""
    alpha = call.arguments.get("alpha", 1)
    if contains_node(alpha) or alpha != 1:
        return refused("alpha", alpha)
    if not isinstance(call.arguments.get("equation", ""), str):
        return "unknown", "its equation is no text but lists of axes"
    factors = factors_of(call.arguments)
    if len(factors) != 2:
        return "unknown", f"it has {len(factors)} operands, integers are multiplied in pairs"
    if any(map(is_number, factors)) and not all(map(is_scalar, factors)):
        return "pointwise", ""
    if any(is_scalar(f) and not is_constant(f) for f in factors):
        return "unknown", (
            "one operand depends on the batch size, or is changed by the model, or is no float32"
        )
    return None


def of_one_value(call: BoundCall) -> Variant | None:
    """All but one argument of a pointwise function are numbers."""
    others = [source for source in call.node.all_input_nodes if not is_number(source)]
    return None if len(others) == 1 else ("unknown", "it depends on more than one tensor")


def factors_of(arguments: Mapping[str, Any]) -> list[Any]:
    """Operands of a sum or product by its bound arguments; all that follow an equation."""
    if "operands" in arguments:
        return list(arguments["operands"])
    return [arguments["input"], arguments["other"]]


def quotient(call: BoundCall) -> Variant | None:
    """A quotient is known between two computed tensors, not rounded to an integer."""
    if call.arguments["rounding_mode"] is not None:
        return refused("rounding_mode", call.arguments["rounding_mode"])
    return between_tensors(call)


def mean_of_floats(call: BoundCall) -> Variant | None:
    """Averages are float32, as all values of the model."""
    dtype = call.arguments["dtype"]
    return None if dtype in (None, torch.float32) else refused("dtype", dtype)


def sum_of_floats(call: BoundCall) -> Variant | None:
    """A sum of booleans or integers is one; others are as averages."""
    source, known = call.arguments["input"], getattr(call.node.meta.get("type"), "dtype", None)
    counts = source.meta["call"].operation.name == "no_floats"
    if counts or (known is not None and not known.is_floating_point):
        return "no_floats", ""
    return mean_of_floats(call)


def few_overlaps(call: BoundCall) -> Variant | None:
    """Sums of up to 256 windows: float32 holds those of 16-bit integers."""
    found = fixed_options(call)
    if found is not None:
        return found
    given = (call.arguments[name] for name in ("kernel_size", "dilation", "stride"))
    sides = [value if isinstance(value, tuple | list) else (value, value) for value in given]
    counts = [min(k, -(-(d * (k - 1) + 1) // s)) for k, d, s in zip(*sides, strict=True)]
    return None if math.prod(counts) <= 256 else refused("kernel_size", tuple(sides[0]))


def interpolation(call: BoundCall) -> Variant | None:
    """Nearest neighbours move values, averages stay between them, cubic functions overshoot."""
    mode = str(call.arguments["mode"])
    if "nearest" in mode:
        return "resize_nearest", ""
    return ("resize_cubic", "") if mode == "bicubic" else None


def known_axes(call: BoundCall) -> Variant | None:
    """A normalization of floats over axes that are known before the model runs."""
    for name in ("dim", "normalized_shape", "num_groups", "eps", "dtype"):
        value = call.arguments.get(name)
        if contains_node(value) or (name == "dtype" and value not in (None, torch.float32)):
            return refused(name, value)
    if "dim" in call.arguments and not isinstance(call.arguments["dim"], int):
        return refused("dim", call.arguments["dim"])
    given = ((name, call.arguments.get(name)) for name in ("weight", "bias"))
    return next((refused(name, v) for name, v in given if not is_scalar(v)), None)


def logarithm_of_softmax(call: BoundCall) -> Variant | None:
    """A loss needs it, a deployed network does not."""
    return "unknown", LOGARITHM


def statistics_of_each_image(call: BoundCall) -> Variant | None:
    """An instance norm with running statistics has constants in evaluation, as a batch norm."""
    for name in ("running_mean", "running_var"):
        if call.arguments[name] is not None:
            return refused(name, call.arguments[name])
    return known_axes(call)


def euclidean(call: BoundCall) -> Variant | None:
    """Values are divided by their length, the root of the sum of their squares."""
    return known_axes(call) if call.arguments["p"] == 2 else refused("p", call.arguments["p"])


def euclidean_length(call: BoundCall) -> Variant | None:
    """The root of a sum of squares along known axes; a matrix has other norms too."""
    given = call.arguments
    dims = given["dim"] if isinstance(given["dim"], tuple | list) else [given["dim"]]
    if given["p"] not in (2, "fro", None):
        return refused("p", given["p"])
    if call.node.target is torch.linalg.norm and len(dims) == 2 and given["p"] == 2:
        return "unknown", "p=2 of a matrix, its largest singular value, has no integer form"
    if not dims or not all(isinstance(dim, int) for dim in dims):
        return refused("dim", given["dim"])
    if given["dtype"] not in (None, torch.float32):
        return refused("dtype", given["dtype"])
    return refused("keepdim", given["keepdim"]) if contains_node(given["keepdim"]) else None


# ---- operations that move values ----------------------------------------------------------------


def values_with_places(call: BoundCall) -> Variant | None:
    """A pool that also gives the places of its values gives a tuple."""
    function = str(getattr(call.node.target, "__name__", ""))
    if not call.arguments["return_indices"] and not function.endswith(_PLACES):
        return None
    return ("max_pool" if "kernel_size" in call.arguments else "adaptive_max_pool") + _PLACES, ""


def maxima(call: BoundCall) -> Variant | None:
    """With an axis the result is a pair; of two tensors it is their maximum."""
    other = call.arguments["other"]
    if other is None:
        return None
    if is_number(other):
        return "max_with_indices", ""
    return between_tensors(call) or ("maximum", "")


def padding(call: BoundCall) -> Variant | None:
    """Reflection and replication move values; zero lies on every grid, and no other constant."""
    if call.arguments["mode"] != "constant":
        return "pad_from_inside", ""
    value = call.arguments["value"]
    if contains_node(value):
        return refused("value", value)
    return None if value in (0, None) else ("pad_with_value", "")


def dropping_in_training(call: BoundCall) -> Variant | None:
    """Dropout is the identity in evaluation, unless a function is told to drop there too."""
    training = call.arguments["training"]
    return refused("training", True) if call.module is None and training is True else None


def sizes_only(call: BoundCall) -> Variant | None:
    """``x.view(dtype)`` reads the bits of the values as another type."""
    sizes = call.arguments["sizes"]
    listed = sizes if isinstance(sizes, tuple | list) else [sizes]
    return next((refused("dtype", s) for s in listed if isinstance(s, torch.dtype)), None)


def indexing(call: BoundCall) -> Variant | None:
    """An element of a shape is a number."""
    return ("scalar", "") if is_scalar(call.arguments["input"]) else None
