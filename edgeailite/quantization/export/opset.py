"""Rewrite a file of the exporter's oldest opset for an older one."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import onnx.inliner
from onnx import NodeProto, helper

from edgeailite.quantization.export.proto import ProtoGraph, attributes, drop_attributes

OLDEST_OPSET = 13  # the first with per-channel QuantizeLinear and DequantizeLinear
TORCH_OPSET = 18  # the oldest that torch.onnx writes
_MAX_EXPANSIONS = 4  # a function's body may hold functions
_TYPES = {number: name.lower() for name, number in onnx.TensorProto.DataType.items()}
_LOG = logging.getLogger(__name__)


def lower_opset(proto: onnx.ModelProto, target: int) -> onnx.ModelProto:
    """Rewrite a file of opset 18 for an older one.

    Operators that did not change stay; changed ones are written in their older form, newer ones by
    the functions that define them.

    Args:
        proto: Of opset 18; may be changed.
        target: 13 to 17.

    Returns:
        The rewritten file.

    Raises:
        ValueError: An operator has no form in `target`; the message names it and the oldest opset
            that has one.
    """
    proto = _expand_functions(proto, target)
    graph = ProtoGraph(proto.graph)
    for node in list(graph.nodes):
        if not node.domain:
            _lower_node(graph, node, target)
    graph.prune()
    graph.write()
    for opset in proto.opset_import:
        if not opset.domain:
            opset.version = target
    return proto


def _schema(operator: str, version: int) -> onnx.defs.OpSchema | None:
    try:
        schema = onnx.defs.get_schema(operator, version, "")
    except onnx.defs.SchemaError:
        return None
    return None if schema.deprecated else schema


def _expand_functions(proto: onnx.ModelProto, target: int) -> onnx.ModelProto:
    """Replace operators that `target` lacks by the functions that define them."""
    for _ in range(_MAX_EXPANSIONS):
        names = {n.op_type for n in proto.graph.node if not n.domain}
        missing = [("", name) for name in sorted(names) if _schema(name, target) is None]
        expandable = [key for key in missing if _has_body(key[1])]
        if not expandable:
            break
        _LOG.info(
            "Opset %d lacks %s: written as the functions that define them.",
            target,
            ", ".join(name for _, name in expandable),
        )
        proto = onnx.inliner.inline_selected_functions(
            _with_types(proto), expandable, inline_schema_functions=True
        )
    return proto


def _with_types(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a file with the type of every value noted, as the inliner needs it."""
    typed = onnx.shape_inference.infer_shapes(proto)
    known = {v.name for v in (*typed.graph.input, *typed.graph.value_info)}
    typed.graph.value_info.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims)
        for t in typed.graph.initializer
        if t.name not in known
    )
    return typed


def _has_body(operator: str) -> bool:
    schema = _schema(operator, TORCH_OPSET)
    if schema is None:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)  # type: ignore


def _lower_node(graph: ProtoGraph, node: NodeProto, target: int) -> None:
    """Rewrite one node in the form that its operator has in `target`."""
    new, old = _schema(node.op_type, TORCH_OPSET), _schema(node.op_type, target)
    assert new is not None, node.op_type
    if old is None:
        raise _unavailable(node, target, new, "the operator is newer")
    if old.since_version == new.since_version:
        return
    if (rewrite := _REWRITES.get(node.op_type)) is not None:
        rewrite(graph, node)
    extra = [a.name for a in node.attribute if a.name not in old.attributes]
    _drop_defaults(node, extra, new)
    reason = _misfit(graph, node, old)
    if reason:
        raise _unavailable(node, target, new, reason)


def _unavailable(
    node: NodeProto, target: int, schema: onnx.defs.OpSchema, reason: str
) -> ValueError:
    return ValueError(
        f"opset_version is {target}, in which operator {node.op_type} (node '{node.name}') cannot "
        f"be written: {reason}. The oldest opset that can is {schema.since_version}."
    )


def _drop_defaults(node: NodeProto, names: list[str], schema: onnx.defs.OpSchema) -> None:
    """Remove attributes that have their default value."""
    values = attributes(node)
    defaults = {
        name: helper.get_attribute_value(schema.attributes[name].default_value)
        for name in names
        if schema.attributes[name].default_value.name
    }
    drop_attributes(node, [n for n in names if n in defaults and values[n] == defaults[n]])


def _misfit(graph: ProtoGraph, node: NodeProto, old: onnx.defs.OpSchema) -> str:
    """Say which part of the node the older form lacks; empty if it lacks none."""
    extra = [a.name for a in node.attribute if a.name not in old.attributes]
    if extra:
        return f"attribute {extra[0]} is newer"
    if len(node.input) > old.max_input:
        return f"it has {len(node.input)} inputs, at most {old.max_input} are allowed there"
    for i, name in enumerate(node.input):
        element, formal = graph.element_type(name), old.inputs[min(i, len(old.inputs) - 1)]
        if element and f"tensor({_TYPES[element]})" not in formal.types:
            return f"input {i} holds {_TYPES[element]}"
    return ""


# ---- operators whose form changed ---------------------------------------------------------------


def _axes_to_attribute(graph: ProtoGraph, node: NodeProto) -> None:
    """Write the axes of Reduce* as an attribute."""
    if len(node.input) < 2 or not node.input[1]:
        return
    axes = graph.constant(node.input[1])
    if axes is None or (axes.size == 0 and attributes(node).get("noop_with_empty_axes")):
        return
    del node.input[1:]
    if axes.size:
        node.attribute.append(helper.make_attribute("axes", [int(a) for a in axes]))
    drop_attributes(node, ["noop_with_empty_axes"])


def _split_sizes(graph: ProtoGraph, node: NodeProto) -> None:
    """Drop the number of parts of Split, which is that of its outputs; unequal parts get sizes."""
    values, shape = attributes(node), graph.shape(node.input[0])
    if "num_outputs" not in values or shape is None:
        return
    size, count = shape[int(values.get("axis", 0))], len(node.output)
    if size is None:
        return
    drop_attributes(node, ["num_outputs"])
    if size % count:
        part = -(-size // count)
        sizes = [part] * (count - 1) + [size - part * (count - 1)]
        name = graph.add_constant(f"{node.output[0]}.split", np.array(sizes, dtype=np.int64))
        node.input[:] = [node.input[0], name]


def _all_axes(graph: ProtoGraph, node: NodeProto) -> None:
    """Give the amounts of Pad for all axes."""
    if len(node.input) < 4:
        return
    if not node.input[3]:
        del node.input[3:]
        return
    pads, axes = graph.constant(node.input[1]), graph.constant(node.input[3])
    shape = graph.shape(node.input[0])
    if pads is None or axes is None or shape is None:
        return
    amounts = np.zeros((2, len(shape)), dtype=np.int64)
    amounts[:, axes] = pads.reshape(2, -1)
    node.input[1] = graph.add_constant(f"{node.output[0]}.pads", amounts.ravel())
    del node.input[3:]


def _zero_in_shape(graph: ProtoGraph, node: NodeProto) -> None:
    """Drop ``allowzero`` of Reshape, unless the shape has a 0."""
    shape = graph.constant(node.input[1])
    # A computed shape has a 0 only where a tensor is empty.
    if shape is None or 0 not in shape:
        drop_attributes(node, ["allowzero"])


def _part_of_shape(graph: ProtoGraph, node: NodeProto) -> None:
    """Write Shape of some dimensions as the whole shape and a Slice."""
    values = attributes(node)
    if not values.get("start") and "end" not in values:
        return
    name = node.output[0]
    bounds = [
        graph.add_constant(f"{name}.{key}", np.array([values.get(key, default)], dtype=np.int64))
        for key, default in (("start", 0), ("end", np.iinfo(np.int64).max))
    ]
    node.output[0] = graph.fresh(f"{name}.whole")
    graph.nodes.insert(
        next(i for i, n in enumerate(graph.nodes) if n is node) + 1,
        helper.make_node("Slice", [node.output[0], *bounds], [name], f"{node.name}_part"),
    )
    drop_attributes(node, ["start", "end"])
    graph.index()


_REDUCTIONS = (
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSumSquare",
)
_REWRITES: dict[str, Callable[[ProtoGraph, NodeProto], None]] = {
    **dict.fromkeys(_REDUCTIONS, _axes_to_attribute),
    "Split": _split_sizes,
    "Pad": _all_axes,
    "Reshape": _zero_in_shape,
    "Shape": _part_of_shape,
}
