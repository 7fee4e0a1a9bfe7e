"""Write the source map of docs/layout.md from the first lines of the files' docstrings.

python tools/source_map.py
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "layout.md"
BEGIN, END = "<!-- source-map:begin -->\n", "<!-- source-map:end -->\n"


def summary(path: Path) -> str:
    """Return the first line of a file's docstring as Markdown, without its full stop."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    line = text.partition("\n")[0].removesuffix(".").replace("|", "\\|")
    return re.sub(r":\w+:`[.~]?([^`]+)`", r"`\1`", line)


def source_map(package: Path) -> str:
    """Make a table of files for each folder of a package, in Markdown."""
    folders = sorted({path.parent for path in package.rglob("*.py")})
    return "\n".join(_table(folder, package.parent) for folder in folders)


def _table(folder: Path, root: Path) -> str:
    files = sorted(path for path in folder.glob("*.py") if not path.name.startswith("__"))
    lines = [f"### `{folder.relative_to(root).as_posix()}/`", ""]
    lines += [f"{summary(folder / '__init__.py')}.", ""]
    if files:
        lines += ["| File | Content |", "|---|---|"]
        lines += [f"| `{path.name}` | {summary(path)} |" for path in files]
        lines += [""]
    return "\n".join(lines)


def render(page: str) -> str:
    """Replace the map in the text of the page."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{source_map(ROOT / 'edgeailite')}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
