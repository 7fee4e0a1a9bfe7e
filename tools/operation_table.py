"""Write the tables of docs/operations.md from the table of operations and the targets.

python tools/operation_table.py
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from edgeailite.quantization.graph.operations import (
    BATCH_NORM,
    INPUT,
    KEEP_IN_FLOAT,
    OUTPUT,
    QUANTIZE_HERE,
    QUANTIZER,
    SCALAR,
    UNKNOWN,
)
from edgeailite.quantization.graph.registry import OPERATIONS, Operation, calls_of
from edgeailite.quantization.integer.rule_target import RuleTarget
from edgeailite.quantization.prepare.target import Target
from edgeailite.quantization.targets.registry import TARGETS

PAGE = Path(__file__).parents[1] / "docs" / "operations.md"
BEGIN, END = "<!-- operation-table:begin -->\n", "<!-- operation-table:end -->\n"
# Parts of a graph that compute nothing, or that the user does not call.
PARTS = (INPUT, OUTPUT, UNKNOWN, SCALAR, QUANTIZER, QUANTIZE_HERE, KEEP_IN_FLOAT)
SYMBOLS = {
    "add": "+",
    "iadd": "+=",
    "sub": "-",
    "isub": "-=",
    "mul": "*",
    "imul": "*=",
    "truediv": "/",
    "itruediv": "/=",
    "floordiv": "//",
    "pow": "**",
    "matmul": "@",
    "getitem": "x[...]",
}


def render(page: str) -> str:
    """Replace the tables in the text of the page."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{operation_tables()}\n{END}{after}"


def operation_tables() -> str:
    """Make a table of operations for each group, in Markdown."""
    groups: dict[str, list[Operation]] = {}
    for operation in OPERATIONS.values():
        if operation not in PARTS:
            groups.setdefault(_group(operation), []).append(operation)
    return "\n".join(_table(title, rows) for title, rows in groups.items())


def _group(operation: Operation) -> str:
    if operation.traits.has_weight or operation is BATCH_NORM:
        return "Layers"
    if operation.traits.is_activation:
        return "Activation functions"
    return "Operations that move values" if operation.traits.moves_values else "Arithmetic"


def _table(title: str, operations: list[Operation]) -> str:
    header = ("Operation", "Calls", *(f"`{name}`" for name in TARGETS))
    lines = [f"### {title}", "", _line(*header), f"|{'---|' * len(header)}"]
    lines += [
        _line(f"`{o.name}`", calls(o), *(computed(o, target) for target in TARGETS.values()))
        for o in operations
    ]
    return "\n".join([*lines, ""])


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def computed(operation: Operation, target: Target) -> str:
    """How a target computes an operation, in a word."""
    if operation is BATCH_NORM:
        has_rule = isinstance(target, RuleTarget) and target.rules.fused(operation) is not None
        return "folded, else integers" if has_rule else "folded, else float"
    if operation.traits.moves_values:
        return "moved"
    if operation.traits.is_activation:
        return "clip"
    return "integers" if target.computes(operation) else "float"


def calls(operation: Operation) -> str:
    """Modules, functions and methods of an operation; other forms of them go without saying."""
    found = calls_of(operation)
    names = [_module_name(module) for module in found["modules"]] + list(found["type_names"])
    names += [_function_name(function) for function in found["functions"]]
    names += [f".{name}()" for name in found["methods"]]
    shown = [n for n in dict.fromkeys(names) if not re.search(r"\w_(\(\))?$|=$|_with_indices$", n)]
    return ", ".join(f"`{name}`" for name in _join_dimensions(shown))


def _module_name(module: type[nn.Module]) -> str:
    name = module.__name__
    return f"nn.{name}" if getattr(nn, name, None) is module else name


def _function_name(function: object) -> str:
    name = getattr(function, "__name__", str(function))
    if getattr(function, "__module__", "") == "_operator":
        return SYMBOLS.get(name, name)
    if name.startswith("linalg_"):
        return f"torch.{name.replace('_', '.', 1)}"
    library = "torch" if getattr(torch, name, None) is function else ""
    library = "F" if getattr(F, name, None) is function else library
    return f"{library}.{name.lstrip('_')}"


def _join_dimensions(names: list[str]) -> list[str]:
    """Make ``nn.Conv1d/2d/3d`` of the three names."""
    joined: dict[str, str] = {}
    for name in names:
        match = re.fullmatch(r"(.*)(\dd)", name)
        stem = match[1] if match else name
        joined[stem] = f"{joined[stem]}/{match[2]}" if match and stem in joined else name
    return list(joined.values())


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
