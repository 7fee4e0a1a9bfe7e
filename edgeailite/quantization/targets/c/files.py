"""The files of a network in C: header, source, test vectors, a program that checks them."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edgeailite.files.atomic import write_together
from edgeailite.quantization.graph.running import GraphRunner
from edgeailite.quantization.graph.twins import original_type
from edgeailite.quantization.integer.grid import Quantize
from edgeailite.quantization.targets.c import (  # noqa: F401 (their rules)
    functions,
    gains,
    layers,
    pointwise,
    resizing,
    windows,
)
from edgeailite.quantization.targets.c.program import (
    Argument,
    Array,
    At,
    Buffer,
    Port,
    Program,
    Step,
    Struct,
    bytes_of,
    offset_of,
    require_identifier,
    type_of,
)
from edgeailite.quantization.targets.c.reader import Reader

if TYPE_CHECKING:
    from edgeailite.quantization.graph.model import GraphModel

KERNELS = ("edgeailite_kernels.h", "edgeailite_kernels.c")
_PER_LINE = 16


@torch.no_grad()
def export_c(
    model: GraphModel,
    example_inputs: Sequence[Tensor],
    folder: str | os.PathLike[str],
    name: str = "model",
) -> list[Path]:
    """Write ``<name>.h``, ``<name>.c``, test vectors, kernels, a program that checks; see docs.

    Args:
        model: Integer graph that requantizes by a scale.
        example_inputs: Test vectors, one for each element of the batch; their shapes are the
            device's.
        folder: Where to write; made if it is missing.
        name: A C identifier, with which all names begin.

    Returns:
        The files.

    Raises:
        ValueError: `name` is no C identifier or another file's, or an operation has no form in C.
    """
    require_identifier(name, "main", "edgeailite_kernels")
    program = Reader(model, example_inputs).read()
    network = network_files(program, name)
    files = {
        f"{name}.h": _made_by(model) + network.pop(f"{name}.h"),
        f"{name}.c": network.pop(f"{name}.c"),
        f"{name}_vectors.h": _vectors(model, program, example_inputs, name),
        **{file: _filled(_text(f"{file}.in"), name) for file in ("main.c", "CMakeLists.txt")},
        **network,
    }
    return write_together(Path(folder), files)


def _made_by(model: GraphModel) -> str:
    """Comment that says where a network comes from."""
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]).replace("*/", "* /")
    return f"/* Made of {original_type(model).__name__} by: {command} */\n"


def network_files(program: Program, name: str) -> dict[str, str]:
    """Texts of a network and of its kernels, by the names of their files."""
    body = _source(program, name)
    kernels = {file: _text(file) for file in KERNELS}
    return {f"{name}.h": _header(program, name, body), f"{name}.c": body, **kernels}


def _text(file: str) -> str:
    source = resources.files("edgeailite.quantization.targets.c") / "sources"
    return (source / file).read_text(encoding="utf-8")


def _filled(template: str, name: str) -> str:
    return template.replace("@name@", name).replace("@NAME@", name.upper())


# ---- the network --------------------------------------------------------------------------------


def _source(program: Program, name: str) -> str:
    lines = [f'#include "{name}.h"', "", '#include "edgeailite_kernels.h"', ""]
    calls = []
    for number, step in enumerate(program.steps):
        text = _StepText(f"{name}_{number}", step)
        lines += text.constants
        calls += [f"    /* {step.name} */", *text.call]
    lines += [f"void {name}_run(void *arena)", "{", "    int8_t *at = (int8_t *)arena;"]
    return "\n".join([*lines, *calls, "}", ""])


class _StepText:
    """Constants and call of one step.

    Attributes:
        constants: Lines that define them.
        call: Lines of the call.
    """

    def __init__(self, name: str, step: Step) -> None:
        self.name, self.constants = name, list[str]()
        self._count = 0
        args = [self._argument(argument) for argument in step.args]
        self.call = [f"    {step.kernel}("]
        for arg in args:
            joint = "" if self.call[-1].endswith("(") else ", "
            if len(self.call[-1]) + len(joint + arg) > 96:
                self.call[-1] += joint.rstrip()
                self.call.append("        " + arg)
            else:
                self.call[-1] += joint + arg
        self.call[-1] += ");"

    def _argument(self, argument: Argument) -> str:
        if isinstance(argument, Array):
            return self._array(argument)
        if isinstance(argument, Struct):
            return f"&{self._define(argument.type, self._struct(argument), '')}"
        if isinstance(argument, list):
            return self._list(argument)
        if isinstance(argument, At):
            return f"{self._place(argument.buffer)} + {_distance(argument)}"
        return self._place(argument) if isinstance(argument, Buffer) else str(argument)

    def _place(self, buffer: Buffer) -> str:
        if buffer.values is None:
            return f"at + {buffer.place}"
        assert buffer.grid is not None
        return self._array(Array(type_of(buffer.grid), buffer.values))

    def _list(self, structs: list[Struct]) -> str:
        words = "{" + ", ".join(self._struct(s) for s in structs) + "}"
        return self._define(structs[0].type, words, "[]")

    def _struct(self, struct: Struct) -> str:
        words = [f".{field} = {self._field(value)}" for field, value in struct.fields.items()]
        return "{" + ", ".join(words) + "}"

    def _field(self, value: Any) -> str:
        if isinstance(value, Struct):
            return self._struct(value)
        return self._argument(value) if isinstance(value, Array | list) else str(value)

    def _define(self, type: str, words: str, brackets: str) -> str:
        name = self._new_name()
        self.constants.append(f"static const {type} {name}{brackets} = {words};")
        return name

    def _array(self, array: Array) -> str:
        name = self._new_name()
        self.constants += _array(f"static const {array.type} {name}", array.values)
        return name

    def _new_name(self) -> str:
        self._count += 1
        return f"{self.name}_{self._count}"


def _distance(place: At) -> int:
    grid = place.buffer.grid
    return place.number * (1 if grid is None else bytes_of(grid))


def _array(declared: str, values: Tensor) -> list[str]:
    words = [str(v) for v in values.tolist()] or ["0"]
    rows = [", ".join(words[i : i + _PER_LINE]) for i in range(0, len(words), _PER_LINE)]
    return [f"{declared}[] = {{", *(f"    {row}," for row in rows), "};"]


# ---- the header ---------------------------------------------------------------------------------


def _header(program: Program, name: str, source: str) -> str:
    checksum = hashlib.sha256(source.encode()).hexdigest()[:16]
    guard = f"{name.upper()}_H"
    lines = [
        f"/* Written by edgeailite: network '{name}', {len(program.steps)} calls of kernels.",
        f" * Checksum of {name}.c: {checksum}.",
        " *",
        f" * {name}_run() reads its inputs in the arena, whose values they share their place with,",
        " * and leaves its outputs there. The arena begins at a multiple of 4.",
        " */",
        f"#ifndef {guard}",
        f"#define {guard}",
        "",
        "#include <stdint.h>",
        "",
        f"#define {name.upper()}_ARENA_SIZE {max(program.arena, 4)} /* bytes */",
    ]
    for kind, ports in (("INPUT", program.inputs), ("OUTPUT", program.outputs)):
        for number, port in enumerate(ports):
            suffix = f"_{number}" if len(ports) > 1 else ""
            lines += ["", *_port_lines(f"{name.upper()}_{kind}{suffix}", port)]
    lines += ["", f"void {name}_run(void *arena);", "", "#endif", ""]
    return "\n".join(lines)


def _port_lines(name: str, port: Port) -> Iterator[str]:
    """Place, size, type and meaning of an input or output."""
    grid, type = port.grid, type_of(port.grid)
    shape = " x ".join(str(port.shape[a]) for a in port.order) or "1"
    yield f"/* {shape}, axes {', '.join(map(str, port.order))} of PyTorch's without the batch */"
    yield f"#define {name}(arena) (({type} *)(void *)((int8_t *)(arena) + {port.buffer.place}))"
    yield f"#define {name}_SIZE {port.count}"
    yield f"#define {name}_SCALE {grid.scale!r} /* real value: (stored - zero) * scale */"
    yield f"#define {name}_ZERO {grid.zero_point - offset_of(grid)}"
    yield f"#define {name}_BYTES {bytes_of(grid)}"


# ---- test vectors -------------------------------------------------------------------------------


def _vectors(model: GraphModel, program: Program, examples: Sequence[Tensor], name: str) -> str:
    inputs, outputs = stored_values(model, program, examples)
    lines = [
        "/* Written by edgeailite: inputs, and the outputs that PyTorch computes for them. */",
        f"#ifndef {name.upper()}_VECTORS_H",
        f"#define {name.upper()}_VECTORS_H",
        "",
        "#include <stdint.h>",
        "",
        f"#define {name.upper()}_VECTORS {len(examples[0])}",
        f"#define {name.upper()}_INPUTS {len(inputs)}",
        f"#define {name.upper()}_OUTPUTS {len(outputs)}",
        "",
    ]
    for kind, ports, values in (
        ("input", program.inputs, inputs),
        ("output", program.outputs, outputs),
    ):
        for number, (port, rows) in enumerate(zip(ports, values, strict=True)):
            declared = f"static const {type_of(port.grid)} {name}_{kind}_{number}"
            lines += _array(declared, rows.reshape(-1))
        lines += _table(name, kind, ports)
    return "\n".join([*lines, "#endif", ""])


def _table(name: str, kind: str, ports: list[Port]) -> list[str]:
    """Values of all inputs, or outputs, with their places in the arena."""
    rows = [
        f"    {{{name}_{kind}_{i}, {p.buffer.place}, {p.count * bytes_of(p.grid)}}},"
        for i, p in enumerate(ports)
    ]
    declared = f"static const struct {{ const void *values; int32_t place, bytes; }} {name}_{kind}s"
    return [f"{declared}[] = {{", *rows, "};", ""]


def stored_values(
    model: GraphModel, program: Program, examples: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Stored integers of the inputs and outputs of a network, in the order of memory.

    Returns:
        For each input, and each output, int64 of shape ``(vectors, values)``.
    """
    outputs = GraphRunner(model).run(*examples)
    listed = [outputs] if isinstance(outputs, Tensor) else _flat(outputs)
    return (
        [in_memory(x, b) for x, b in zip(examples, program.inputs, strict=True)],
        [in_memory(y, b) for y, b in zip(listed, program.outputs, strict=True)],
    )


def _flat(outputs: Any) -> list[Tensor]:
    values = outputs.values() if isinstance(outputs, dict) else outputs
    found = list[Tensor]()
    for value in values:
        found += [value] if isinstance(value, Tensor) else _flat(value)
    return found


def in_memory(real: Tensor, port: Port) -> Tensor:
    """Real values as integers of a port's grid, as they lie in memory: ``(batch, values)``."""
    integers = Quantize(port.grid).integers(real).long() - offset_of(port.grid)
    shaped = integers.reshape(len(real), *port.shape)
    return shaped.permute(0, *(axis + 1 for axis in port.order)).reshape(len(real), -1)
