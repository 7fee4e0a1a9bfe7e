"""Inputs and results of models: tensors in dicts, lists, tuples and dataclasses."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.immutable_collections import immutable_dict

_DICTS = (dict, OrderedDict, immutable_dict)  # all are dicts in a graph


@dataclasses.dataclass(frozen=True)
class Place:
    """Stands for the tensor of a number in a structure."""

    index: int


@dataclasses.dataclass(frozen=True)
class Made:
    """Stands for a dataclass, or a mapping that is no dict, in a structure without tensors.

    Attributes:
        kind: Its type.
        fields: Fields, or items.
    """

    kind: type
    fields: dict[str, Any]

    def __call__(self, make: Callable[..., Any] | None = None) -> Any:
        """Make one of these fields; or what `make` gives for type and fields."""
        if make is not None:
            return make(self.kind, self.fields)
        if dataclasses.is_dataclass(self.kind):
            return self.kind(**self.fields)
        return self.kind(self.fields)


Path = tuple[tuple[str, Any], ...]
"""Way to a tensor: ``("key", key)`` in dicts and sequences, ``("field", name)`` in dataclasses."""


def flatten(value: Any) -> tuple[list[Tensor], Any]:
    """Take the tensors out of a structure.

    Returns:
        The tensors, and the structure with a :class:`Place` for each of them.
    """
    tensors: list[Tensor] = []

    def take(tensor: Any) -> Any:
        if not isinstance(tensor, Tensor):
            return tensor
        tensors.append(tensor)
        return Place(len(tensors) - 1)

    return tensors, rebuild(value, take, Made)


def rebuild(value: Any, leaf: Callable[[Any], Any], make: Callable[..., Any] | None = None) -> Any:
    """Build a structure again, with other leaves.

    Args:
        value: Dicts, lists, tuples, named tuples and dataclasses are structures, all else leaves.
        leaf: Gives the new leaf for each.
        make: Called with a type and its fields in the place of calling the type itself, for
            dataclasses and other mappings than dicts.
    """

    def again(part: Any) -> Any:
        return rebuild(part, leaf, make)

    if isinstance(value, Place):
        return leaf(value)
    if isinstance(value, Made):
        return Made(value.kind, again(value.fields))(make)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            f.name: again(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init
        }
        return Made(type(value), fields)(make)
    if isinstance(value, Mapping):
        items = {key: again(part) for key, part in value.items()}
        return items if type(value) in _DICTS else Made(type(value), items)(make)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(again, value))
    if isinstance(value, list):
        return [again(part) for part in value]
    if isinstance(value, tuple):
        return tuple(map(again, value))
    return leaf(value)


def without_types(value: Any) -> Any:
    """Make dicts of the dataclasses and mappings in a structure."""
    return rebuild(value, lambda leaf: leaf, lambda _kind, fields: fields)


def paths(value: Any, before: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield the way to each leaf of a structure, with the leaf."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type | Place):
        for field in dataclasses.fields(value):
            yield from paths(getattr(value, field.name), (*before, ("field", field.name)))
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from paths(part, (*before, ("key", key)))
    elif isinstance(value, tuple | list):
        for i, part in enumerate(value):
            yield from paths(part, (*before, ("key", i)))
    else:
        yield before, value


@dataclasses.dataclass(frozen=True)
class Example:
    """Inputs that a model is called with.

    Attributes:
        args: By position.
        kwargs: By name.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors in them, in order."""
        return flatten((self.args, dict(self.kwargs)))[0]

    def with_tensors(self, tensors: Sequence[Any]) -> Example:
        """The same inputs with other tensors."""
        _, structure = flatten((self.args, dict(self.kwargs)))
        args, kwargs = rebuild(structure, lambda v: tensors[v.index] if isinstance(v, Place) else v)
        return Example(args, kwargs)

    def copied(self) -> Example:
        """Copies, which the model may overwrite."""
        return self.with_tensors([t.detach().clone() for t in self.tensors])

    def with_batch_of_two(self) -> Example:
        """Each example twice, where all tensors hold one along their first axis."""
        tensors = self.tensors
        if not tensors or any(t.dim() == 0 or t.shape[0] != 1 for t in tensors):
            return self
        return self.with_tensors([torch.cat([t, t]) for t in tensors])

    def with_two_samples(self) -> Example:
        """The first two, where all tensors hold more along their first axis."""
        tensors = self.tensors
        sizes = {t.shape[0] if t.dim() else 0 for t in tensors}
        if len(sizes) != 1 or min(sizes) <= 2:
            return self
        return self.with_tensors([t[:2] for t in tensors])

    def describe(self) -> str:
        """Shapes of the tensors, for a message."""
        return ", ".join(str(tuple(t.shape)) for t in self.tensors) or "no tensor"
