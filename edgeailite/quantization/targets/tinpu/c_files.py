"""An integer graph as C for a device: tables, test vectors, and the runner that reads them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edgeailite.files.atomic import write_together
from edgeailite.quantization.graph.running import node_values
from edgeailite.quantization.targets.c.program import pack, require_identifier
from edgeailite.quantization.targets.tinpu.c_program import make_program

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel
    from edgeailite.quantization.targets.tinpu.c_instructions import Instruction, Program

RUNNER = ("edgeailite_runner.h", "edgeailite_runner.c")
_TYPES = {
    "weights": "uint8_t",
    "offsets": "int32_t",
    "multipliers": "int16_t",
    "shifts": "uint8_t",
    "float_offsets": "float",
    "factors": "float",
}


@torch.no_grad()
def export_c(
    model: GraphModel, example_input: Tensor, folder: str | os.PathLike[str], name: str = "model"
) -> list[Path]:
    """Write ``<name>.h``, ``<name>_vectors.h`` and the runner; see docs/device_files.md.

    Args:
        model: From :func:`~edgeailite.quantization.targets.tinpu.target.Tinpu.convert`.
        example_input: Test vectors, one for each element of the batch; its shape is the device's.
        folder: Where to write; made if it is missing.
        name: A C identifier, with which all names begin.

    Returns:
        The files.

    Raises:
        ValueError: `name` is no C identifier, or an operation has no form in C.
    """
    require_identifier(name, "edgeailite_runner")
    program = make_program(model, example_input)
    files = {
        f"{name}.h": _network(program, name),
        f"{name}_vectors.h": _vectors(model, program, example_input, name),
    }
    source = resources.files("edgeailite.quantization.targets.tinpu") / "c"
    files |= {file: (source / file).read_text(encoding="utf-8") for file in RUNNER}
    return write_together(Path(folder), files)


def _network(program: Program, name: str) -> str:
    guard = f"{name.upper()}_H"
    last = program.instructions[-1].result
    lines = [
        f"/* Written by edgeailite: {len(program.instructions)} operations. */",
        f"#ifndef {guard}",
        f"#define {guard}",
        "",
        '#include "edgeailite_runner.h"',
        "",
        f"#define {name.upper()}_ARENA_SIZE {program.arena}",
        f"#define {name.upper()}_OPERATIONS {len(program.instructions)}",
        f"#define {name.upper()}_OUTPUT {last.place} /* place in the arena */",
        f"#define {name.upper()}_OUTPUT_SIZE {last.size}",
        f"#define {name.upper()}_OUTPUT_SIGNED {int(last.is_signed)}",
        f"#define {name.upper()}_OUTPUT_SCALE {_float(last.grid.scale)} /* real value of 1 */",
        "",
    ]
    entries = []
    for i, operation in enumerate(program.instructions):
        tables = _tables(operation)
        for table, values in tables.items():
            lines += _array(_TYPES[table], f"{name}_{i}_{table}", values)
        entries.append(_entry(operation, {table: f"{name}_{i}_{table}" for table in tables}))
    lines += [f"static const edgeailite_operation {name}_operations[] = {{", *entries, "};", ""]
    return "\n".join([*lines, "#endif", ""])


def _tables(operation: Instruction) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    if operation.weight is not None:
        found["weights"] = pack(operation.weight, operation.weight_bits)
    if operation.opcode == "INPUT":
        return {"float_offsets": operation.offsets, "factors": operation.factors}
    for name in ("offsets", "multipliers", "shifts"):
        if values := getattr(operation, name):
            found[name] = values
    return found


def _entry(operation: Instruction, tables: dict[str, str]) -> str:
    operands = [*operation.operands, None, None][:2]
    grid = operation.result.grid
    fields: dict[str, Any] = {
        "kind": f"EDGEAILITE_{operation.opcode}",
        "is_signed": _signed(operands[0]),
        "other_is_signed": _signed(operands[1]),
        "weight_bits": operation.weight_bits,
        "input": operands[0].place if operands[0] else 0,
        "other": operands[1].place if operands[1] else 0,
        "output": operation.result.place + operation.result_offset,
        "in": operation.shape_in,
        "out": operation.shape_out,
        "kernel": operation.kernel,
        "stride": operation.stride,
        "padding": operation.padding,
        "dilation": operation.dilation,
        "groups": operation.groups,
        "steps": operation.strides,
        "num_steps": max(len(operation.offsets), len(operation.factors)),
        **tables,
        "low": grid.quant_min,
        "high": grid.quant_max,
    }
    words = ", ".join(f".{field} = {_value(value)}" for field, value in fields.items())
    return f"    /* {operation.name} */\n    {{{words}}},"


def _signed(buffer: Any) -> int:
    return int(buffer is not None and buffer.is_signed)


def _value(value: Any) -> str:
    return f"{{{', '.join(map(str, value))}}}" if isinstance(value, tuple) else str(value)


def _array(type_name: str, name: str, values: Iterable[Any]) -> list[str]:
    words = [_float(v) if type_name == "float" else str(v) for v in values]
    rows = [", ".join(words[i : i + 16]) for i in range(0, len(words), 16)]
    return [
        f"static const {type_name} {name}[] = {{",
        *(f"    {row}," for row in rows),
        "};",
    ]


def _float(value: float) -> str:
    """A float32 exactly, in decimal digits."""
    return f"{value:.9g}f" if "." in f"{value:.9g}" or "e" in f"{value:.9g}" else f"{value:.9g}.0f"


def _vectors(model: GraphModel, program: Program, example_input: Tensor, name: str) -> str:
    """Inputs, and what every operation must give, for each element of the batch."""
    guard = f"{name.upper()}_VECTORS_H"
    values = node_values(model, [example_input], {op.node for op in program.instructions})
    lines = [
        "/* Written by edgeailite: inputs and the expected result of every operation. */",
        f"#ifndef {guard}",
        f"#define {guard}",
        "",
        "#include <stdint.h>",
        "",
        f"#define {name.upper()}_VECTORS {len(example_input)}",
        f"#define {name.upper()}_INPUT_SIZE {example_input[0].numel()}",
        "",
    ]
    lines += _array("float", f"{name}_inputs", example_input.reshape(-1).tolist())
    last = {id(op.result): i for i, op in enumerate(program.instructions)}
    checked = sorted(last.values())
    for i in checked:
        integers = values[program.instructions[i].node].reshape(-1).to(torch.int64).tolist()
        lines += _array("int16_t", f"{name}_expected_{i}", integers)
    lines += ["typedef struct {", "    uint32_t operation, place, size;", "    uint8_t is_signed;"]
    lines += ["    const int16_t *expected; /* of all vectors */", f"}} {name}_check;", ""]
    lines.append(f"static const {name}_check {name}_checks[] = {{")
    for i in checked:
        result = program.instructions[i].result
        words = f"{i}, {result.place}, {result.size}, {int(result.is_signed)}, {name}_expected_{i}"
        lines.append(f"    {{{words}}},")
    lines += ["};", f"#define {name.upper()}_CHECKS {len(checked)}", "", "#endif", ""]
    return "\n".join(lines)
