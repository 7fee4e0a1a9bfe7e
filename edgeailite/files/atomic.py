"""Write files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

__all__ = ["write_atomically", "write_together"]


@contextmanager
def write_atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path that is renamed onto `path` when the block ends without an error.

    After an error the temporary file is removed and `path` keeps its former content. Readers see
    either the former file or the complete new one.

    Args:
        path: File to write. Missing parent folders are made.

    Yields:
        Path of a file to create, in the folder of `path` and with its suffix.

    Example:
        >>> with write_atomically("runs/1/result.json") as temporary:
        ...     temporary.write_text("{}", encoding="utf-8")
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{secrets.token_hex(4)}{target.suffix}")
    try:
        yield temporary
        os.replace(temporary, target)  # noqa: PTH105 -- the word that says atomic
    finally:
        temporary.unlink(missing_ok=True)


def write_together(folder: Path, files: Mapping[str, str]) -> list[Path]:
    """Write all files, or none of them if one cannot be written.

    Args:
        folder: Where to write; made if it is missing.
        files: Texts by name.

    Returns:
        Their paths.
    """
    with ExitStack() as stack:
        for file, text in files.items():
            temporary = stack.enter_context(write_atomically(folder / file))
            temporary.write_text(text, encoding="utf-8")
    return [folder / file for file in files]
