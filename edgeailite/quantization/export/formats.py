"""Registry of export formats: a writer is registered by the name of the format it writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from torch import Tensor

from edgeailite.quantization.graph.model import GraphModel

Source = Literal["prepared", "converted"]
Arithmetic = Literal["scale", "fixed_point"]


@dataclass(frozen=True)
class OnnxOptions:
    """Options that every format takes.

    Attributes:
        opset_version: Opset of the file, 13 or newer; None: the format's default.
        input_names: Names of the inputs; None: those of the model's own ``forward``.
        output_names: Names of the outputs; None: the exporter's.
        dynamic_batch: Leave the batch size open. If the model fixes it, a message says so.
        fuse: Let the exporter fuse operators (a batch norm into the convolution before it); None:
            the format's default.
    """

    opset_version: int | None = None
    input_names: Sequence[str] | None = None
    output_names: Sequence[str] | None = None
    dynamic_batch: bool = True
    fuse: bool | None = None

    def with_defaults(
        self, opset_version: int | None = None, fuse: bool | None = None
    ) -> OnnxOptions:
        """Return a copy in which the given defaults replace None."""
        return replace(
            self,
            opset_version=opset_version if self.opset_version is None else self.opset_version,
            fuse=fuse if self.fuse is None else self.fuse,
        )


WriteFunction = Callable[
    [GraphModel, tuple[Tensor, ...], str | os.PathLike[str], OnnxOptions], Path
]


@dataclass(frozen=True)
class Writer:
    """Writer of one format.

    Attributes:
        format: Name of the format.
        source: ``"prepared"``: it writes a wrapper's prepared model; ``"converted"``: the integer
            graph.
        arithmetic: Integer arithmetic of the models it writes: ``"scale"`` (multiply by a float
            scale), ``"fixed_point"`` (offset, multiplier and shift); None: both.
        description: Contents of the file, for tables and help texts.
        write: Writes a model to a path and returns the path.
    """

    format: str
    source: Source
    arithmetic: Arithmetic | None
    description: str
    write: WriteFunction


_WRITERS: dict[str, Writer] = {}


def writer(
    name: str, *, source: Source, description: str, arithmetic: Arithmetic | None = None
) -> Callable[[WriteFunction], WriteFunction]:
    """Register the decorated function as the writer of format `name`.

    Args:
        name: Name of the format, as users give it to ``export(format=...)``.
        source: See :class:`Writer`.
        description: See :class:`Writer`.
        arithmetic: See :class:`Writer`.

    Raises:
        ValueError: The name is taken, or `source` or `arithmetic` is unknown.

    Example:
        >>> @writer("TOY", source="converted", description="number of modules, as text")
        ... def write_toy(model, example_inputs, path, options):
        ...     Path(path).write_text(str(len(list(model.modules()))))
        ...     return Path(path)
    """
    if name in _WRITERS:
        raise ValueError(
            f"Export format {name!r} is registered already, by "
            f"{_WRITERS[name].write.__module__}. Choose another name."
        )
    if source not in get_args(Source):
        raise ValueError(f"source is {source!r}; allowed: {_quoted(get_args(Source))}.")
    if arithmetic is not None and arithmetic not in get_args(Arithmetic):
        raise ValueError(
            f"arithmetic is {arithmetic!r}; allowed: None, {_quoted(get_args(Arithmetic))}."
        )

    def register(write: WriteFunction) -> WriteFunction:
        _WRITERS[name] = Writer(name, source, arithmetic, description, write)
        return write

    return register


def writers(arithmetic: Arithmetic | None = None, source: Source | None = None) -> list[Writer]:
    """List the registered writers in the order of registration.

    Args:
        arithmetic: Only writers for models of this arithmetic; None: all.
        source: Only writers of this source; None: all.
    """
    return [
        w
        for w in _WRITERS.values()
        if (arithmetic is None or w.arithmetic in (None, arithmetic))
        and (source is None or w.source == source)
    ]


def find_writer(name: str, offered: Iterable[Writer]) -> Writer:
    """Return the writer of format `name` among the offered ones.

    Raises:
        ValueError: None of them writes that format; the message lists the formats they write.
    """
    by_name = {w.format: w for w in offered}
    if name in by_name:
        return by_name[name]
    names = _quoted(by_name)
    wanted = _WRITERS.get(name)
    given = name if wanted is None else wanted.format
    needs_wrapper = wanted is not None and wanted.source == "prepared"
    if needs_wrapper and all(w.source == "converted" for w in by_name.values()):
        raise ValueError(
            f"format is {given!r}, which needs the wrapper from before conversion; "
            f"a converted model holds integers and writes {names}."
        )
    raise ValueError(f"format is {given!r}; allowed: {names}.")


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
