"""Optional packages: installed by an extra of this package, imported where they are used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["needs_extra"]


@contextmanager
def needs_extra(extra: str, what: str) -> Iterator[None]:
    """Guard imports of optional packages: a missing one is named with the extra that has it.

    Args:
        extra: Name of the extra in pyproject.toml.
        what: The feature that needs the package, first in the message.

    Raises:
        ImportError: A package that the block imports is not installed.

    Example:
        >>> with needs_extra("search", "The search for bit widths"):
        ...     from scipy.optimize import milp
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise ImportError(
            f"{what} needs {package}: pip install 'edgeailite[{extra}]'.", name=package
        ) from error
