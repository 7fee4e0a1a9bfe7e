"""Reasons for operations that stay in float."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import fx, nn

from edgeailite.quantization.graph.calls import operands, operation_of, traits_of
from edgeailite.quantization.graph.model import TRAINING_ONLY, graph_of, module_of, target_of
from edgeailite.quantization.graph.operations import (
    BATCH_NORM,
    INPUT,
    KEEP_IN_FLOAT,
    OUTPUT,
    PRELU,
    QUANTIZE_HERE,
    QUANTIZER,
    SCALAR,
    UNKNOWN,
)
from edgeailite.quantization.graph.patterns import (
    computed_parameter,
    is_absorbed,
    is_inner_function,
    pointwise_chain,
    quantizer_behind,
    quantizer_of,
)
from edgeailite.quantization.graph.results import (
    ELEMENT,
    NO_FLOATS,
    PARAMETRIZATION,
    RECURRENT,
)
from edgeailite.quantization.graph.twins import original_type
from edgeailite.quantization.modules.activation import FakeQuantize
from edgeailite.quantization.modules.functional_layer import QuantFunctionalLayer
from edgeailite.quantization.modules.layer import QUANT_LAYERS, QuantLayer
from edgeailite.quantization.modules.layer_calls import layer_call
from edgeailite.quantization.report.entries import FloatEntry

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel

_BY_CONFIGURATION = "the preset or configuration leaves it in float"
_OFF_GRID = "lies on no grid, so the arithmetic is float"


def float_operations(model: GraphModel) -> dict[str, FloatEntry]:
    """Find the operations in float, by path (modules) or node (functions), in graph order.

    Args:
        model: Prepared and classified.
    """
    found = {}
    for node in graph_of(model).nodes:
        reason = _reason(model, node)
        if reason is not None:
            name = str(node.target) if node.op == "call_module" else _function_path(node)
            found[name] = FloatEntry(operation_name(model, node), reason + _inside(model, node))
    return found


def operation_name(model: GraphModel, node: fx.Node) -> str:
    """Return the type of the module, or the name of the function or method, of a node."""
    module = module_of(model, node)
    if module is None:
        return getattr(node.target, "__name__", str(node.target))
    if isinstance(module, QuantFunctionalLayer):
        return module.function.__name__
    return original_type(module).__name__


def _function_path(node: fx.Node) -> str:
    owner = node.meta.get("owner", "")
    return f"{owner}.{node.name}" if owner else node.name


def _reason(model: GraphModel, node: fx.Node) -> str | None:
    operation, traits = operation_of(node), traits_of(node)
    if node.meta.get(TRAINING_ONLY, False) or operation in (
        ELEMENT,
        NO_FLOATS,
        PARAMETRIZATION,
    ):
        return None  # not deployed; not arithmetic on floats
    if operation is RECURRENT:
        return "a recurrent layer: called whole, with float weights"
    if operation is KEEP_IN_FLOAT:
        return "NoQAct asks for float"
    if traits.has_weight:
        return _layer_reason(model, node)
    if "output_quantizer" in node.kwargs:  # a module of the target computes it
        return None
    if operation is BATCH_NORM:
        return _standalone_reason(model, node)
    if operation is UNKNOWN:
        return _unknown_reason(model, node)
    if traits.moves_values or operation in (INPUT, OUTPUT, SCALAR, QUANTIZER, QUANTIZE_HERE):
        return None
    return _arithmetic_reason(model, node)


def _standalone_reason(model: GraphModel, node: fx.Node) -> str | None:
    """Reason for a batch norm that no layer folds: integers between two grids, else float."""
    source = quantizer_of(operands(node)[0])
    if quantizer_behind(node) is not None and _has_8_bits(model, source):
        return None
    return "no layer in front of it folds it, and it is not between two grids of at most 8 bits"


def _layer_reason(model: GraphModel, node: fx.Node) -> str | None:
    module = module_of(model, node)
    if isinstance(module, QuantLayer):
        call = layer_call(model, node)
        assert call is not None
        on_grid = quantizer_of(call.input_node) is not None
        return None if on_grid else f"its weight is quantized, but its input {_OFF_GRID}"
    if module is None:
        computed = computed_parameter(node)
        if computed is not None:
            return f"its {computed} depends on the input"
    elif type(module) not in QUANT_LAYERS:
        base = next(b.__name__ for b in QUANT_LAYERS if isinstance(module, b))
        return f"a subclass of {base} may compute anything: only torch's own layers are quantized"
    return _BY_CONFIGURATION


def _arithmetic_reason(model: GraphModel, node: fx.Node) -> str | None:
    """Reason for an operation that computes on grids if operands and result have one."""
    readers = [operation_of(user) for user in node.users]
    computed = target_of(model).computes(operation_of(node))
    if computed and is_inner_function(node):
        return None  # computed, or named, as a part of the function behind it
    if KEEP_IN_FLOAT in readers:
        return "NoQAct behind it asks for float"
    if not computed:
        return "the target has no integer form of it"
    if traits_of(node).is_activation and not is_absorbed(node):
        return "its bounds are not two numbers, the lower one first, so no grid can hold them"
    if QUANTIZER not in readers:
        return _BY_CONFIGURATION
    first = pointwise_chain(node)[0] if traits_of(node).is_pointwise else node
    grids = [quantizer_of(operand) for operand in operands(first)]
    if None in grids:
        return f"an operand {_OFF_GRID}"
    if operation_of(node) is PRELU and not _has_8_bits(model, grids[0]):
        return "a PReLU of a value with more than 8 bits has no integer form"
    return None


def _has_8_bits(model: GraphModel, quantizer: fx.Node | None) -> bool:
    module = None if quantizer is None else module_of(model, quantizer)
    return isinstance(module, FakeQuantize) and module.spec.bit_width <= 8


def _unknown_reason(model: GraphModel, node: fx.Node) -> str:
    """Reason for an operation that the table does not know, or not with these arguments."""
    module = module_of(model, node)
    if isinstance(module, nn.MultiheadAttention):
        return (
            "a leaf module: leaf_modules names it, or it is called with masks or with queries, "
            "keys and values that differ"
        )
    if module is not None and _holds_a_network(module):
        return "a leaf module (leaf_modules, or one of torch's own): called without a look inside"
    if node.op == "call_function" and not _is_torch(node.target):
        return "a function that tracing does not enter (torch.fx.wrap): called as it is"
    return node.meta["call"].reason or "no integer form is known for it"


def _holds_a_network(module: nn.Module) -> bool:
    """True if a module is more than one operation: the user's own type, or one with children."""
    parts = [child for child in module.children() if not isinstance(child, FakeQuantize)]
    return bool(parts) or not original_type(module).__module__.startswith("torch.nn")


def _is_torch(function: Any) -> bool:
    """True if a function is torch's own or one of Python's operators."""
    module = getattr(function, "__module__", None) or "torch"  # torch's builtins name none
    return module.partition(".")[0] in ("torch", "_operator", "operator", "builtins", "math")


def _inside(model: GraphModel, node: fx.Node) -> str:
    """Remark for the functions that attention was opened into."""
    if node.op == "call_module":
        return ""
    owner = model.get_submodule(node.meta.get("owner", ""))
    return " (a piece of attention)" if isinstance(owner, nn.MultiheadAttention) else ""
