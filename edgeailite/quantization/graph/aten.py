"""ATen operators of an exported graph: their memory, and torch's public functions for them."""

from __future__ import annotations

import copyreg
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._ops import OpOverload

from edgeailite.quantization.graph.in_place import Aliasing, InPlaceError
from edgeailite.quantization.graph.registry import operation_of_function, operation_of_method

MEMORY = "memory"
"""Key of a node's ``meta``: a number for the memory of its tensor; a list of them for several."""

_aten = torch.ops.aten


def _operator_named(namespace: str, name: str, overload: str) -> OpOverload:
    return getattr(getattr(getattr(torch.ops, namespace), name), overload)


def _reduce_operator(target: OpOverload) -> tuple[Any, ...]:
    names = (target.namespace, target.overloadpacket.__name__, target._overloadname)
    return _operator_named, names


copyreg.pickle(OpOverload, _reduce_operator)  # torch's own pickles as nothing that loads
_SAME = ("alias", "contiguous", "detach", "detach_", "dropout", "expand_as", "lift_fresh", "to")
_RESHAPES = (
    "_unsafe_view",
    "flatten",
    "reshape",
    "squeeze",
    "unflatten",
    "unsqueeze",
    "view",
    "view_as",
)


def _name(node: fx.Node) -> str:
    """Name of an ATen operator without its overload; empty for other nodes."""
    target = node.target
    if not isinstance(target, OpOverload) or target.namespace != "aten":
        return ""
    return target.overloadpacket.__name__


class AtenAliasing(Aliasing):
    """Of an exported graph: by the operators' schemas, and by the memory of their results."""

    def overwritten(self, node: fx.Node) -> fx.Node | None:
        """Return the operand that a call overwrites."""
        if not isinstance(node.target, OpOverload) or _name(node) == "detach_":
            return None
        written = [
            _argument(node, i, argument.name)
            for i, argument in enumerate(node.target._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        if len(written) > 1 or (written and not isinstance(written[0], fx.Node)):
            raise InPlaceError(f"'{node.name}' overwrites several tensors")
        return written[0] if written else None

    def viewed(self, node: fx.Node) -> fx.Node | None:
        """Return the tensor whose memory, all or part of it, the result of a call shares."""
        memory = node.meta.get(MEMORY)
        if node.op != "call_function" or memory is None or self.is_split(node):
            return None
        operands = node.all_input_nodes
        if operands and self.is_split(operands[0]) and node.target is operator.getitem:
            operands = operands[0].all_input_nodes
        return next((o for o in operands if o.meta.get(MEMORY) == memory), None)

    def is_split(self, node: fx.Node) -> bool:
        """Return True for a call that gives a tuple of views."""
        memory = node.meta.get(MEMORY)
        operands = {o.meta.get(MEMORY) for o in node.all_input_nodes if not _is_several(o)}
        return isinstance(memory, tuple) and any(m in operands for m in memory)

    def put_back(self, view: fx.Node, base: fx.Node, value: fx.Node) -> fx.Node:
        """Make the node of `base` with `value` in the place that `view` shows."""
        graph, name = view.graph, _name(view)
        if name == "slice":
            return graph.call_function(_aten.slice_scatter.default, (base, value, *view.args[1:]))
        if name == "select":
            return graph.call_function(_aten.select_scatter.default, (base, value, *view.args[1:]))
        if name in _SAME:
            return value
        if name in _RESHAPES:
            return graph.call_method("view_as", (value, base))
        if name == "permute":
            dims: Any = view.args[1]
            inverse = sorted(range(len(dims)), key=lambda i: dims[i] % len(dims))
            return graph.call_method("permute", (value, inverse))
        if name in ("transpose", "t"):
            return graph.call_function(view.target, (value, *view.args[1:]))  # type: ignore[arg-type]
        if view.target is operator.getitem:
            return self._put_part_back(view, base, value)
        raise InPlaceError(f"'{value.name}' overwrites what '{view.name}' shows of '{base.name}'")

    def _put_part_back(self, view: fx.Node, base: fx.Node, value: fx.Node) -> fx.Node:
        split: Any = view.args[0]
        dim = _argument(split, 2, "dim") or 0
        if _name(split) == "unbind":
            arguments = (base, value, _argument(split, 1, "dim") or 0, view.args[1])
            return view.graph.call_function(_aten.select_scatter.default, arguments)
        sizes = [part.shape[dim] for part in split.meta["val"]]
        start, end = sum(sizes[: view.args[1]]), sum(sizes[: view.args[1] + 1])  # type: ignore
        if not all(isinstance(size, int) for size in sizes):
            raise InPlaceError(f"'{value.name}' overwrites a part of '{base.name}' of unknown size")
        return view.graph.call_function(_aten.slice_scatter.default, (base, value, dim, start, end))

    def updates(self, attribute: fx.Node) -> bool:
        """Return True: what a graph overwrites of a module's, it overwrites when it runs."""
        return True


def _is_several(node: fx.Node) -> bool:
    return isinstance(node.meta.get(MEMORY), tuple)


def _argument(node: fx.Node, position: int, name: str) -> Any:
    return node.args[position] if position < len(node.args) else node.kwargs.get(name)


# ---- public functions ---------------------------------------------------------------------------


def use_public_functions(graph: fx.Graph) -> None:
    """Call torch's public functions and methods, which the table of operations knows.

    Args:
        graph: Of ATen operators, none of them in place where its result is read; changed.
    """
    for node in list(graph.nodes):
        if not isinstance(node.target, OpOverload) or node.target.namespace != "aten":
            continue
        _compute_out_of_place(graph, node)
        name = _name(node)
        if name in _REWRITTEN:
            _REWRITTEN[name](graph, node)
        elif name and name not in _KEPT:
            _use_function_of_the_same_name(node, name)


def _compute_out_of_place(graph: fx.Graph, node: fx.Node) -> None:
    """Let a call in place, whose readers are known, compute its result anew."""
    target: Any = node.target
    name = _name(node)
    if not target._schema.is_mutable or not name.endswith("_"):
        return
    root = node
    while root.op == "call_function" and root.args and isinstance(root.args[0], fx.Node):
        if root.meta.get(MEMORY) != root.args[0].meta.get(MEMORY):
            break
        root = root.args[0]
    if root.op == "get_attr":
        return  # a buffer is updated
    packet = getattr(_aten, name[:-1], None)
    if packet is not None and target._overloadname in packet.overloads():
        node.target = getattr(packet, target._overloadname)


def _use_function_of_the_same_name(node: fx.Node, name: str) -> None:
    known: list[Callable[..., Any]] = [
        getattr(owner, name) for owner in (torch, F, torch._C._nn) if hasattr(owner, name)
    ]
    builtin = [f for f in known if type(f).__name__ == "builtin_function_or_method"]
    of_table = next((f for f in builtin if operation_of_function(f) is not None), None)
    if of_table is not None:
        node.target = of_table
    elif operation_of_method(name) is not None and node.args:
        node.op, node.target = "call_method", name
    elif name in _SAME_ARGUMENTS:
        node.target = _SAME_ARGUMENTS[name]
    elif builtin:
        node.target = builtin[0]


# Python functions of torch with the positional arguments of the ATen operator.
_SAME_ARGUMENTS: dict[str, Callable[..., Any]] = {
    "adaptive_avg_pool2d": F.adaptive_avg_pool2d,
    "adaptive_avg_pool3d": F.adaptive_avg_pool3d,
    "adaptive_max_pool2d": F.adaptive_max_pool2d_with_indices,
    "adaptive_max_pool3d": F.adaptive_max_pool3d_with_indices,
    "chunk": torch.chunk,
    "col2im": F.fold,
    "dropout": F.dropout,
    "einsum": torch.einsum,
    "hardtanh": F.hardtanh,
    "im2col": F.unfold,
    "max_pool2d": F._max_pool2d,  # type: ignore[attr-defined]
    "max_pool2d_with_indices": F.max_pool2d_with_indices,
    "max_pool3d_with_indices": F.max_pool3d_with_indices,
    "pad": F.pad,
    "relu6": F.relu6,
    "split": torch.split,
    "split_with_sizes": torch.split,
}
# Their public functions have other arguments.
_KEPT = ("batch_norm", "lstm", "gru")


def _replace(node: fx.Node, value: fx.Node) -> None:
    node.replace_all_uses_with(value)


def _rewrite_copy(graph: fx.Graph, node: fx.Node) -> None:
    """``copy(x, source)`` is the source, where shapes and types are alike."""
    target, source = node.args[:2]
    assert isinstance(target, fx.Node)
    assert isinstance(source, fx.Node)
    one, other = target.meta.get("val"), source.meta.get("val")
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return
    if one.shape == other.shape and one.dtype == other.dtype:
        _replace(node, source)


def _rewrite_size(graph: fx.Graph, node: fx.Node) -> None:
    node.op, node.target = "call_method", "size"


def _rewrite_slice(graph: fx.Graph, node: fx.Node) -> None:
    """``slice(x, dim, start, end, step)`` is an index; all of an axis is no operation."""
    dim, start, end, step = (
        _argument(node, i, name) for i, name in enumerate(("dim", "start", "end", "step"), 1)
    )
    if start in (None, 0) and end in (None, 2**63 - 1) and step in (None, 1):
        _replace(node, node.args[0])  # type: ignore[arg-type]
        return
    end = None if end == 2**63 - 1 else end
    own = slice(start, end, step)
    value = node.args[0].meta.get("val")  # type: ignore[union-attr]
    dim = dim or 0
    if dim < 0:
        if not isinstance(value, Tensor):
            return
        dim += value.dim()
    node.target, node.args = operator.getitem, (node.args[0], (*[slice(None)] * dim, own))


def _rewrite_index(graph: fx.Graph, node: fx.Node) -> None:
    indices: Any = node.args[1]
    index = tuple(slice(None) if i is None else i for i in indices)
    node.target, node.args = operator.getitem, (node.args[0], index)


def _rewrite_upsample(graph: fx.Graph, node: fx.Node) -> None:
    """``upsample_<mode>{n}d.vec(x, size, [align_corners,] factors)`` is ``F.interpolate``."""
    name = _name(node)
    if node.target._overloadname != "vec":  # type: ignore[union-attr]
        return
    antialias = name.endswith("_aa")
    mode = name.removeprefix("_").removeprefix("upsample_").removesuffix("_aa").rstrip("123d")
    x, size, *rest = node.args
    options: dict[str, Any] = {"size": size, "mode": mode.replace("_", "-")}
    if not mode.startswith("nearest"):
        options["align_corners"] = bool(rest[0])
        rest = rest[1:]
    if rest and rest[0] is not None:
        factors: Any = rest[0]
        options["scale_factor"] = tuple(factors)
    if antialias:
        options["antialias"] = True
    node.target, node.args, node.kwargs = F.interpolate, (x,), options


def _rewrite_max_pool(graph: fx.Graph, node: fx.Node) -> None:
    """A pool whose indices nobody reads gives one tensor."""
    function = _SINGLE[_name(node)]
    values = [user for user in node.users if user.args[1] == 0]
    if any(user.users for user in node.users if user.args[1] != 0):
        _use_function_of_the_same_name(node, _name(node))
        return
    with graph.inserting_after(node):
        single = graph.call_function(function, node.args, dict(node.kwargs))
    single.meta.update({k: v for k, v in node.meta.items() if k not in ("val", MEMORY)})
    for value in values:
        _replace(value, single)


_SINGLE = {
    f"{kind}{n}d{tail}": getattr(F, f"_{kind}{n}d")
    for kind, tail in (("adaptive_max_pool", ""), ("max_pool", "_with_indices"))
    for n in (1, 2, 3)
}


def _rewrite_view(graph: fx.Graph, node: fx.Node) -> None:
    node.target = torch.reshape


def _rewrite_norm(graph: fx.Graph, node: fx.Node) -> None:
    """Layer norm and group norm, without the choice of a library."""
    node.target, node.args = getattr(F, _name(node)), node.args[:5]


def _rewrite_instance_norm(graph: fx.Graph, node: fx.Node) -> None:
    x, weight, bias, mean, var, *rest = node.args
    node.target, node.args = F.instance_norm, (x, mean, var, weight, bias, *rest[:3])


def _rewrite_length(graph: fx.Graph, node: fx.Node) -> None:
    """``x / expand_as(clamp_min(linalg_vector_norm(x, p, [dim], True), eps), x)``: normalize."""
    node.target = torch.linalg.vector_norm
    x, dims = node.args[0], _argument(node, 2, "dim")
    clamped, expanded, quotient = chain = _readers(node, 3)
    names = [_name(reader) if reader is not None else "" for reader in chain]
    if names != ["clamp_min", "expand_as", "div"] or not dims or len(dims) > 1:
        return
    if quotient.args != (x, expanded) or not _argument(node, 3, "keepdim"):
        return
    order = _argument(node, 1, "ord")
    quotient.target = F.normalize
    quotient.args = (x, 2.0 if order is None else order, dims[0], clamped.args[1])


def _readers(node: fx.Node, count: int) -> list[Any]:
    """Readers of readers, each the only one; None from where there is none or several."""
    found: list[Any] = []
    current: fx.Node | None = node
    while len(found) < count:
        alone = current is not None and len(current.users) == 1
        current = next(iter(current.users)) if current is not None and alone else None
        found.append(current)
    return found


def _rewrite_reversed(graph: fx.Graph, node: fx.Node) -> None:
    """``rsub(x, other)`` is ``other - x``."""
    if len(node.args) == 2 and not node.kwargs:
        node.target, node.args = operator.sub, node.args[::-1]


def _rewrite_identity(graph: fx.Graph, node: fx.Node) -> None:
    _replace(node, node.args[0])  # type: ignore[arg-type]


def _rewrite_cast(graph: fx.Graph, node: fx.Node) -> None:
    """A cast to the type that a value has, where it is, is none or a copy; others are methods."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    one, other = source.meta.get("val"), node.meta.get("val")
    if (
        isinstance(one, Tensor)
        and isinstance(other, Tensor)
        and (one.dtype, one.device) == (other.dtype, other.device)
    ):
        if source.meta.get(MEMORY) == node.meta.get(MEMORY):
            _replace(node, source)
        else:  # copy=True: a module may overwrite the source
            node.target, node.args, node.kwargs = torch.clone, (source,), {}
        return
    node.op, node.target = "call_method", _name(node)
    node.kwargs = {k: v for k, v in node.kwargs.items() if k not in ("layout", "pin_memory")}


_REWRITTEN: dict[str, Callable[[fx.Graph, fx.Node], None]] = {
    "copy": _rewrite_copy,
    "sym_size": _rewrite_size,
    "slice": _rewrite_slice,
    "index": _rewrite_index,
    "_unsafe_view": _rewrite_view,
    "layer_norm": _rewrite_norm,
    "group_norm": _rewrite_norm,
    "instance_norm": _rewrite_instance_norm,
    "linalg_vector_norm": _rewrite_length,
    "rsub": _rewrite_reversed,
    "to": _rewrite_cast,
    "type_as": _rewrite_cast,
    **dict.fromkeys(("alias", "detach_", "lift_fresh", "lift_fresh_copy"), _rewrite_identity),
    **dict.fromkeys(_SINGLE, _rewrite_max_pool),
    **{
        f"{before}upsample_{mode}{after}": _rewrite_upsample
        for before, modes, after in (
            ("", ("nearest1d", "nearest2d", "nearest3d"), ""),
            ("_", ("nearest_exact1d", "nearest_exact2d", "nearest_exact3d"), ""),
            ("", ("linear1d", "bilinear2d", "trilinear3d", "bicubic2d"), ""),
            ("_", ("bilinear2d", "bicubic2d"), "_aa"),
        )
        for mode in modes
    },
}
