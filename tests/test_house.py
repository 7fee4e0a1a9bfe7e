"""The rules of the house, by syntax tree: sizes, docstrings, imports, what is not done."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGINE = "edgeailite.quantization"
FILES = sorted((ROOT / "edgeailite").rglob("*.py"))
REPLACING = {ROOT / "edgeailite" / "files" / name for name in ("atomic.py", "folder.py")}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 40
MAX_IMPORT_CHAIN = 11
QUESTIONS = {"What", "Whether", "Where", "Which", "How"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DOCUMENTED = (ast.Module, ast.ClassDef, *FUNCTIONS)

each_file = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))


@cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


@each_file
def test_file_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES


def lines_of_code(function, lines):
    """Count a function's lines without docstring, blank lines and comments."""
    counted = set(range(function.lineno, function.end_lineno + 1))
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        counted -= set(range(docstring.lineno, docstring.end_lineno + 1))
    stripped = (lines[number - 1].strip() for number in counted)
    return sum(bool(line) and not line.startswith("#") for line in stripped)


@each_file
def test_functions_are_short(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [node for node in ast.walk(tree(path)) if isinstance(node, FUNCTIONS)]
    sizes = {f"{node.name} (line {node.lineno})": lines_of_code(node, lines) for node in found}
    assert {name: size for name, size in sizes.items() if size > MAX_FUNCTION_LINES} == {}


@each_file
def test_formatter_lays_out_every_line(path):
    marks = ("# fmt: " + word for word in ("skip", "off"))
    text = path.read_text(encoding="utf-8")
    assert [mark for mark in marks if mark in text] == []


def attributes_set(node):
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AugAssign | ast.AnnAssign):
        targets = [node.target]
    else:
        targets = []
    yield from (t.attr for target in targets for t in ast.walk(target) if is_attribute_store(t))
    if isinstance(node, ast.Call) and "setattr" in ast.unparse(node.func):
        yield from (a.value for a in node.args if isinstance(a, ast.Constant))


def is_attribute_store(node):
    return isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)


@each_file
def test_no_class_is_swapped(path):
    lines = [n.lineno for n in ast.walk(tree(path)) if "__class__" in attributes_set(n)]
    assert lines == []


@each_file
def test_docstrings_begin_with_no_question(path):
    nodes = [node for node in ast.walk(tree(path)) if isinstance(node, DOCUMENTED)]
    first_lines = [(ast.get_docstring(node) or "").partition("\n")[0] for node in nodes]
    words = [line.split(maxsplit=1) for line in first_lines]
    assert [" ".join(word) for word in words if QUESTIONS & set(word[:1])] == []


@each_file
def test_files_are_replaced_in_one_room(path):
    calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    replacing = [
        f"line {call.lineno}: {ast.unparse(call)}"
        for call in calls
        if ast.unparse(call.func) in ("os.replace", "os.rename")
        # Path.replace takes one argument, str.replace two, dataclasses.replace keywords.
        or (
            ast.unparse(call.func).endswith(".replace") and len(call.args) == 1 > len(call.keywords)
        )
    ]
    assert path in REPLACING or replacing == []


def imports(path):
    """Names that a file imports, also within functions, as ``module`` or ``module.name``."""
    pending = list(tree(path).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            pending += node.orelse
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            pending += ast.iter_child_nodes(node)


def imported_modules(path):
    """Modules of this package that a file imports."""
    return {
        name if name in MODULES else name.rpartition(".")[0] for name in imports(path)
    } & MODULES.keys()


def engine_imports():
    names = [name for name in MODULES if name == ENGINE or name.startswith(f"{ENGINE}.")]
    return {name: sorted(imported_modules(MODULES[name]) & set(names)) for name in names}


def longest_chain(imports):
    """Find the longest chain of files of which each imports the next one."""
    chains = {}

    def follow(name, importers):
        assert name not in importers, f"cycle: {' -> '.join([*importers, name])}"
        if name not in chains:
            rests = [follow(other, [*importers, name]) for other in imports[name]]
            chains[name] = [name, *max(rests, key=len, default=[])]
        return chains[name]

    return max((follow(name, []) for name in imports), key=len)


def test_chains_of_imports_in_the_engine_are_short():
    chain = longest_chain(engine_imports())
    assert len(chain) <= MAX_IMPORT_CHAIN, "\n".join(chain)


def test_longest_chain_is_found_and_a_cycle_is_an_error():
    assert longest_chain({"a": ["b", "c"], "b": ["c"], "c": []}) == ["a", "b", "c"]
    with pytest.raises(AssertionError, match="cycle: a -> b -> a"):
        longest_chain({"a": ["b"], "b": ["a"]})


@each_file
def test_engine_files_import_files_not_packages(path):
    if not name_of(path).startswith(f"{ENGINE}.") or path.name in ("__init__.py", "__main__.py"):
        return
    packages = {name for name, file in MODULES.items() if file.name == "__init__.py"}
    assert {name for name in imported_modules(path) & packages if name.startswith(ENGINE)} == set()


@each_file
def test_onnx_is_imported_by_export_only(path):
    packages = {name.partition(".")[0] for name in imports(path)}
    assert name_of(path).startswith(f"{ENGINE}.export.") or not packages & {"onnx", "onnxscript"}


@each_file
def test_arithmetic_knows_tensors_only(path):
    if name_of(path).startswith(f"{ENGINE}.arithmetic."):
        assert [n for n in imports(path) if n.startswith(("torch.nn", "torch.fx"))] == []
