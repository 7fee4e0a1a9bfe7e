"""Networks in C, compiled together with sanitizers and run on their test vectors."""

import shutil
import subprocess

import pytest

COMPILER = shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")
FLAGS = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
SANITIZERS = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def build(folder, sources, flags, name="run"):
    built = subprocess.run(
        [COMPILER, *FLAGS, *flags, *sources, "-o", name], cwd=folder, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    return folder / name


def check_together(folder, cases, flags=SANITIZERS):
    """Export all cases, compile one program, return compared and differing bytes of each.

    `cases` are names with pairs of a wrapper (or converted model) and its test vectors.
    """
    names = list(cases)
    for name, (model, x) in cases.items():
        model.export_c(x, folder, name)
        main = (folder / "main.c").read_text()
        (folder / f"{name}_main.c").write_text(main.replace("int main(", f"int check_{name}("))
    lines = [f'#define arena arena_{n}\n#include "{n}.c"\n#include "{n}_main.c"' for n in names]
    calls = " + ".join(f"check_{name}()" for name in names)
    text = "\n#undef arena\n".join(lines) + f"\nint main(void) {{ return {calls}; }}\n"
    (folder / "main.c").write_text(text)
    program = build(folder, ["main.c", "edgeailite_kernels.c"], flags)
    run = subprocess.run([program], capture_output=True, text=True)
    assert run.returncode >= 0, run.stderr
    assert "runtime error" not in run.stderr, run.stderr
    assert "Sanitizer" not in run.stderr, run.stderr
    words = [line.split() for line in run.stdout.splitlines()]
    assert len(words) == len(names)
    return {n: (int(w[0]), int(w[3])) for n, w in zip(names, words, strict=True)}
