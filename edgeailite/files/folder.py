"""Write folders that appear complete or not at all."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

__all__ = ["write_folder"]

logger = logging.getLogger(__name__)


def write_folder(output: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill an empty folder, which then takes the place of `output`.

    An interrupted run leaves no half-made data set, and an earlier one as it was.

    Args:
        output: The folder's final name.
        write: Called with a temporary folder beside it.

    Returns:
        `output`.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        write(made)
        if output.exists():
            logger.info("%s was incomplete and is replaced", output)
            shutil.move(output, Path(temporary) / "old")
        made.replace(output)
    return output
