"""Names of the export formats as an enumeration, made from the registry."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, EnumMeta

from edgeailite.quantization.export.formats import find_writer, writers


class _FormatNames(EnumMeta):
    """Looks attributes up in the registry: ``ExportFormat.QDQ_MODEL``."""

    def __getattr__(cls, name: str) -> ExportFormat:
        if any(w.format == name for w in writers()):
            return cls(name)
        raise AttributeError(f"There is no export format {name!r}.")


class ExportFormat(str, Enum, metaclass=_FormatNames):
    """Contents of an exported file, by name.

    The members are the formats of this package. A format that is registered later is no member,
    but ``ExportFormat("NAME")``, :meth:`choices` and :meth:`parse` know it.
    """

    _ignore_ = "_registered _members"
    _members = vars()
    for _registered in writers():
        _members[_registered.format] = _registered.format

    @classmethod
    def _missing_(cls, value: object) -> ExportFormat | None:
        """Make an instance for a format that was registered after this class was made."""
        if not any(w.format == value for w in writers()):
            return None
        late = str.__new__(cls, value)
        late._name_ = late._value_ = str(value)
        return late

    @property
    def description(self) -> str:
        """Contents of the file in one line."""
        return find_writer(self.value, writers()).description

    @classmethod
    def choices(cls) -> tuple[str, ...]:
        """List the names of all registered formats, for command lines."""
        return tuple(w.format for w in writers())

    @classmethod
    def parse(
        cls, name: ExportFormat | str, allowed: Sequence[ExportFormat | str] | None = None
    ) -> ExportFormat:
        """Return the format of that name.

        Args:
            name: A format or its name.
            allowed: Formats to choose from; None: all.

        Raises:
            ValueError: It is none of the allowed ones.
        """
        offered = [w for w in writers() if allowed is None or w.format in allowed]
        return cls(find_writer(name, offered).format)
