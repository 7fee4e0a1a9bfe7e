"""An ONNX graph with its makers, readers and constants looked up, ready to be rewritten."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper


class ProtoGraph:
    """A graph to rewrite; :meth:`write` puts the result back.

    Args:
        graph: Of a model without subgraphs' captures that a rewrite touches.

    Attributes:
        nodes: In topological order.
        initializers: By name.
        interface: Names of the graph's inputs and outputs, which never change.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.nodes: list[NodeProto] = list(graph.node)
        self.initializers: dict[str, TensorProto] = {t.name: t for t in graph.initializer}
        self.interface = {v.name for v in (*graph.input, *graph.output)}
        self.index()

    def index(self) -> None:
        """Look up makers and readers again, after `nodes` changed."""
        self.makers: dict[str, NodeProto] = {}
        self.readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            self.makers.update(dict.fromkeys(filter(None, node.output), node))
            for name in filter(None, node.input):
                self.readers[name].append(node)
        self.taken = {*self.makers, *self.initializers, *self.interface}
        self.infos = {
            v.name: v for v in (*self.graph.input, *self.graph.output, *self.graph.value_info)
        }

    def fresh(self, name: str) -> str:
        """Take `name`, or ``name_1``, ``name_2``... if it is taken, and return it."""
        candidate, count = name, 0
        while candidate in self.taken:
            count += 1
            candidate = f"{name}_{count}"
        self.taken.add(candidate)
        return candidate

    def constant(self, name: str) -> np.ndarray | None:
        """Return the value of an initializer or a Constant node; None for anything else."""
        if name in self.initializers:
            return numpy_helper.to_array(self.initializers[name])
        maker = self.makers.get(name)
        if maker is None or maker.op_type != "Constant":
            return None
        value = attributes(maker).get("value")
        return None if value is None else numpy_helper.to_array(value)

    def add_constant(self, name: str, value: np.ndarray) -> str:
        """Add an initializer and return its name, which may have got a number."""
        name = self.fresh(name)
        self.initializers[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def element_type(self, name: str) -> int | None:
        """Return the ``onnx.TensorProto`` type of a tensor, None if the file does not say."""
        if name in self.initializers:
            return int(self.initializers[name].data_type)
        info = self.infos.get(name)
        return None if info is None else int(info.type.tensor_type.elem_type)

    def shape(self, name: str) -> list[int | None] | None:
        """Return the dimensions of a tensor (None: open), or None if the file does not say."""
        if name in self.initializers:
            return list(self.initializers[name].dims)
        info = self.infos.get(name)
        if info is None or not info.type.tensor_type.HasField("shape"):
            return None
        dims = info.type.tensor_type.shape.dim
        return [d.dim_value if d.HasField("dim_value") else None for d in dims]

    def rename(self, names: Mapping[str, str]) -> None:
        """Rename tensors everywhere; names of the graph's inputs and outputs stay."""
        assert not self.interface & names.keys()
        for node in self.nodes:
            for values in (node.input, node.output):
                values[:] = [names.get(v, v) for v in values]
        for info in self.graph.value_info:
            info.name = names.get(info.name, info.name)
        for tensor in self.initializers.values():
            tensor.name = names.get(tensor.name, tensor.name)
        self.initializers = {t.name: t for t in self.initializers.values()}
        self.index()

    def prune(self) -> None:
        """Drop nodes, initializers and notes that nothing needs."""
        needed = {v.name for v in self.graph.output}
        kept: list[NodeProto] = []
        for node in reversed(self.nodes):
            if needed & set(node.output):
                needed.update(node.input)
                kept.append(node)
        self.nodes = kept[::-1]
        self.initializers = {k: t for k, t in self.initializers.items() if k in needed}
        self.index()

    def write(self) -> None:
        """Put nodes and initializers into the graph; notes of tensors that are gone go too."""
        nodes, tensors = ([_copy(p) for p in m] for m in (self.nodes, self.initializers.values()))
        notes = {v.name: v for v in self.graph.value_info if v.name in self.makers}
        infos = [_copy(v) for v in notes.values()]
        for field, values in (("node", nodes), ("initializer", tensors), ("value_info", infos)):
            self.graph.ClearField(field)
            getattr(self.graph, field).extend(values)


def _copy(message: Any) -> Any:
    copied = type(message)()
    copied.CopyFrom(message)
    return copied


def attributes(node: NodeProto) -> dict[str, Any]:
    """Return a node's attributes as Python values (strings as ``bytes``)."""
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def drop_attributes(node: NodeProto, names: Iterable[str]) -> None:
    """Remove attributes from a node."""
    dropped = set(names)
    kept = [_copy(a) for a in node.attribute if a.name not in dropped]
    node.ClearField("attribute")
    node.attribute.extend(kept)


def add_outputs(
    path: str | os.PathLike[str], names: Sequence[str], target: str | os.PathLike[str]
) -> list[str]:
    """Write a copy of a file in which inner tensors are outputs as well.

    Args:
        path: The file.
        names: Tensors that shall become outputs.
        target: The copy.

    Returns:
        Those of `names` that the file has.
    """
    model = onnx.load(os.fspath(path))
    made = {output for node in model.graph.node for output in node.output}
    found = [name for name in names if name in made]
    given = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in found if n not in given)
    onnx.save(model, os.fspath(target))
    return found


def drop_traces(proto: onnx.ModelProto) -> None:
    """Remove the exporter's notes: a third of a small file, and paths of this machine."""
    for item in (
        *proto.graph.node,
        *proto.graph.value_info,
        *proto.graph.input,
        *proto.graph.output,
    ):
        item.ClearField("metadata_props")
    proto.graph.ClearField("metadata_props")
