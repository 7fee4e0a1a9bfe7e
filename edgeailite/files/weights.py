"""Load weights into a model and report what was loaded."""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from edgeailite.files.checkpoint import read_state_dict
from edgeailite.files.download import download_once

__all__ = ["LoadReport", "load_weights"]

_SHOWN = 8


@dataclass(frozen=True)
class LoadReport:
    """Tensors of a checkpoint that were loaded, and those that were not.

    Attributes:
        source: Origin of the weights: a path, a URL, or ``a state dict``.
        loaded: Names that were loaded.
        missing: Names of the model that the checkpoint lacks; they keep their values.
        other_shape: Names in both whose shapes differ, as (name, shape in the checkpoint, shape in
            the model); they keep their values.
        unused: Names of the checkpoint that the model lacks.
        ignored: Names of the checkpoint that the caller asked to leave out.
        renamed: True if the checkpoint's names were changed though nobody gave a table.
    """

    source: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    other_shape: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    unused: tuple[str, ...]
    ignored: tuple[str, ...]
    renamed: bool = False

    @property
    def complete(self) -> bool:
        """True if every tensor of the model was loaded and every one of the checkpoint used."""
        return not (self.missing or self.other_shape or self.unused or self.ignored)

    def __str__(self) -> str:
        """Format the counts, and the first names of each group that is not empty."""
        shapes = tuple(f"{name} {theirs} -> {ours}" for name, theirs, ours in self.other_shape)
        groups = {
            "missing in the checkpoint": self.missing,
            "of another shape (checkpoint -> model)": shapes,
            "unused of the checkpoint": self.unused,
            "ignored on request": self.ignored,
        }
        renamed = ", their names changed to the model's" if self.renamed else ""
        lines = [f"Weights from {self.source}: {len(self.loaded)} tensors loaded{renamed}"]
        lines += [
            f"  {len(names)} {what}: {_first(names)}" for what, names in groups.items() if names
        ]
        return "\n".join(lines)


def load_weights(
    model: nn.Module,
    weights: Mapping[str, Any] | str | Path,
    *,
    change_names_dict: Mapping[str, str] | None = None,
    ignore: Iterable[str] = (),
    strict: bool = False,
    cache_dir: str | Path | None = None,
    verbose: bool = True,
) -> LoadReport:
    """Load weights into a model; report what was loaded, missing, of another shape, or unused.

    Args:
        model: Changed in place.
        weights: A state dict, or a mapping with one under ``state_dict`` or ``model``; the path of
            a file with either; or an http(s) URL of such a file, downloaded once and checked.
        change_names_dict: Regular expression -> replacement, applied in order to each name of the
            checkpoint (``re.sub``). None: where no tensor fits under its own name, the tables of
            ``model.other_names`` are tried in order, and a classifier's names are looked for in
            ``model.encoder``.
        ignore: Regular expressions; names of the checkpoint, after renaming, in which one is found
            are left out.
        strict: Raise an error if anything is missing, of another shape, or unused. Tensors that
            `ignore` left out may be missing.
        cache_dir: Folder of the downloads; None: the folder of ``torch.hub``.
        verbose: Print the report.

    Returns:
        The report.

    Raises:
        FileNotFoundError: There is no such file.
        ConnectionError: The URL cannot be fetched.
        ValueError: Not a checkpoint, truncated, damaged; two names become one; not a single tensor
            fits the model; or `strict` and not everything fits. The model is then unchanged.
    """
    state, source = _read(weights, cache_dir)
    own = model.state_dict()
    table = _fitting_table(model, own, state) if change_names_dict is None else change_names_dict
    state = _renamed(state, table)
    ignored = _pop(state, lambda name: any(re.search(pattern, name) for pattern in ignore))
    other = _pop(state, lambda name: name in own and own[name].shape != state[name].shape)
    _check_fit(own, state, len(other), source)
    before = {name: value.clone() for name, value in own.items()} if strict else {}
    result = model.load_state_dict(state, strict=False)
    report = LoadReport(
        source=source,
        loaded=tuple(name for name in state if name not in set(result.unexpected_keys)),
        missing=tuple(name for name in result.missing_keys if name not in other),
        other_shape=tuple((n, tuple(t.shape), tuple(own[n].shape)) for n, t in other.items()),
        unused=tuple(result.unexpected_keys),
        ignored=tuple(ignored),
        renamed=change_names_dict is None and bool(table),
    )
    if strict and (set(report.missing) - set(ignored) or report.other_shape or report.unused):
        model.load_state_dict(before)
        raise ValueError(f"The checkpoint does not fit the model. {report}")
    if verbose:
        print(report)  # noqa: T201 -- the report is for whoever watches the run
    return report


def _read(
    weights: Mapping[str, Any] | str | Path, cache_dir: str | Path | None
) -> tuple["OrderedDict[str, Tensor]", str]:
    if isinstance(weights, Mapping):
        return read_state_dict(weights), "a state dict"
    is_url = str(weights).startswith(("http://", "https://"))
    path = download_once(str(weights), cache_dir) if is_url else Path(weights)
    return read_state_dict(path), str(weights)


def _fitting_table(
    model: nn.Module, own: Mapping[str, Tensor], state: "OrderedDict[str, Tensor]"
) -> Mapping[str, str]:
    """Find the first of the model's tables by which a tensor fits; an empty one where none does."""
    tables = _tables(model)
    if hasattr(model, "encoder"):  # takes the weights of a classifier
        tables += [{**table, r"^": "encoder."} for table in _tables(model.encoder)]
    for table in tables:
        renamed = _renamed(state, table)
        if any(name in own and own[name].shape == t.shape for name, t in renamed.items()):
            return table
    return {}


def _tables(model: Any) -> list[Mapping[str, str]]:
    """Tables of a model: none, then those from the names of other projects."""
    return [{}, *getattr(model, "other_names", ())]


def _renamed(
    state: "OrderedDict[str, Tensor]", table: Mapping[str, str]
) -> "OrderedDict[str, Tensor]":
    """Change the names; the state versions that travel with the dict stay."""
    renamed: OrderedDict[str, Tensor] = OrderedDict()
    for old, value in state.items():
        new = old
        for pattern, replacement in table.items():
            new = re.sub(pattern, replacement, new)
        if new in renamed:
            raise ValueError(
                f"change_names_dict gives two tensors of the checkpoint the name {new!r} (the "
                f"second is {old!r}); make its expressions more specific."
            )
        renamed[new] = value
    if hasattr(state, "_metadata"):
        renamed._metadata = state._metadata  # type: ignore[attr-defined]
    return renamed


def _pop(state: dict[str, Tensor], which: Callable[[str], bool]) -> dict[str, Tensor]:
    return {name: state.pop(name) for name in [name for name in state if which(name)]}


def _check_fit(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], other_shapes: int, source: str
) -> None:
    if own.keys() & state.keys():
        return
    raise ValueError(
        f"Nothing in {source} fits the model: {other_shapes} of its tensors have a known name but "
        f"another shape, {len(state)} an unknown name (such as {_first(tuple(state)[:2])}; the "
        f"model has {_first(tuple(own)[:2])}). Check the model's name and its number of classes, "
        f"or rename with change_names_dict."
    )


def _first(names: tuple[str, ...]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
