"""README.md and docs/*.md: snippets run, links resolve, commands and tables agree with the code."""

import ast
import copy
import dataclasses
import importlib
import inspect
import operator
import re
import runpy
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

from edgeailite import xnn
from edgeailite.models import create_model, list_models
from edgeailite.models.published import PUBLISHED
from edgeailite.quantization.export.formats import writers
from edgeailite.quantization.export.opset import OLDEST_OPSET
from edgeailite.quantization.wrappers.pact2 import _PACT2Module
from edgeailite.xnn.utils import model_complexity
from references.edgeailite.engine.options import Options, parse_options
from references.edgeailite.engine.options_classification import ClassificationOptions
from references.edgeailite.engine.options_segmentation import SegmentationOptions

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# CONTRIBUTING.md's blocks are run by test_contributing.py.
ALL_PAGES = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
# What the report says of operations in float.
REASONS = (
    "edgeailite/quantization/report/reasons.py",
    "edgeailite/quantization/graph/variants.py",
    "edgeailite/quantization/graph/casts.py",
    "edgeailite/quantization/graph/average_calls.py",
    "edgeailite/quantization/prepare/masks.py",
    "edgeailite/quantization/graph/opened_calls.py",
)
MAIN_SCRIPTS = {
    "train_classification_main.py": ClassificationOptions,
    "train_segmentation_main.py": SegmentationOptions,
}


def _name(page):
    return str(page.relative_to(ROOT))


def _blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def _without_blocks(page):
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def _table_rows(text):
    """Cells of the tables whose first column names code, without the header."""
    rows = re.findall(r"^\| (`.*) \|$", text, re.MULTILINE)
    return [[cell.strip() for cell in row.split(" | ")] for row in rows]


def _small_network():
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )


def _user_names(folder):
    """What the snippets call yours: a model, data, a loss, a quantized checkpoint."""
    model = _small_network()
    batches = [(torch.randn(8, 3, 16, 16), torch.randint(0, 4, (8,))) for _ in range(3)]
    trained = xnn.quantize.QuantCalibrateModule(copy.deepcopy(model), dummy_input=batches[0][0][:1])
    trained.train()
    trained(batches[0][0])
    torch.save(trained.module.state_dict(), folder / "quantized.pth")
    return {
        "model": model,
        "float_model": copy.deepcopy(model),
        "dummy_input": batches[0][0][:1],
        "images": batches[0][0],
        "train_loader": batches,
        "val_loader": batches,
        "criterion": nn.CrossEntropyLoss(),
        "epochs": 2,
    }


@pytest.mark.parametrize("page", [p for p in PAGES if _blocks(p, "python")], ids=_name)
def test_python_blocks_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = _user_names(tmp_path)
    for block in _blocks(page, "python"):
        line = page.read_text()[: page.read_text().index(block)].count("\n")
        exec(compile("\n" * line + block, str(page), "exec"), names)


def test_readme_snippet_exports_and_verifies(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = _user_names(tmp_path)
    train, verify = _blocks(ROOT / "README.md", "python")
    exec(train, names)
    assert (tmp_path / "model.onnx").is_file()
    capsys.readouterr()
    exec(verify, names)
    printed = capsys.readouterr().out
    assert "96 output values of 24 inputs" in printed
    assert re.findall(r": (\d+) differ", printed) == ["0", "0", "0"]


def _anchors(page):
    """What a link may name behind `#`: a title of a page, a test of a file."""
    if page.suffix == ".py":
        return set(re.findall(r"^def (test_\w+)\(", page.read_text(), re.MULTILINE))
    titles = re.findall(r"^#+ (.*)$", _without_blocks(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", ALL_PAGES, ids=_name)
def test_relative_links_resolve(page):
    links = re.findall(r"\]\(([^)\s]+)\)", _without_blocks(page))
    broken = []
    for link in links:
        if re.match(r"\w+://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        missing = not target.exists() or not target.is_relative_to(ROOT)
        if missing or (anchor and anchor not in _anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", ALL_PAGES, ids=_name)
def test_links_to_files_are_called_as_the_files(page):
    links = re.findall(r"\[([\w/.]+\.(?:py|md|sh))\]\(([^)\s#]+)", _without_blocks(page))
    assert [(text, path) for text, path in links if not f"/{path}".endswith(f"/{text}")] == []


def _is_importable(name):
    """True if a dotted name is a module, or an attribute of one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        try:
            operator.attrgetter(".".join(parts[length:]) or "__name__")(module)
        except AttributeError:
            return False
        return True
    return False


@pytest.mark.parametrize("page", ALL_PAGES, ids=_name)
def test_names_in_prose_are_importable(page):
    text = _former_names_left_out(_without_blocks(page))
    names = re.findall(r"(?<![\w./-])edgeailite(?:\.[A-Za-z_]\w*)+", text)
    assert sorted(name for name in set(names) if not _is_importable(name)) == []


def _former_names_left_out(text):
    """The text without the first column of tables that begin with it: former names."""
    tables = re.compile(r"^\| Before \|.*\n(?:\|.*\n)+", re.MULTILINE)
    return tables.sub(lambda m: re.sub(r"^\|.*?\|", "|", m[0], flags=re.MULTILINE), text)


def test_every_page_is_in_the_index():
    linked = set(re.findall(r"\]\((\w+\.md)\)", (ROOT / "docs" / "README.md").read_text()))
    assert linked == {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}


def _programs(text):
    """Scripts of this repository that commands call, links left out."""
    shell = re.findall(r"(?<![\w.(])\./([\w/.-]+\.sh)", text)
    python = re.findall(r"(?:\bpython3?|\btorchrun\b.*?) (?:\./)?([\w/.-]+\.py)\b", text)
    return set(shell + python)


@pytest.mark.parametrize("page", [p for p in PAGES if _programs(p.read_text())], ids=_name)
def test_programs_in_commands_exist(page):
    programs = _programs(page.read_text())
    assert sorted(name for name in programs if not (ROOT / name).is_file()) == []


def test_readme_names_the_two_commands():
    block = _blocks(ROOT / "README.md", "bash")[0]
    assert {"run_quantization_example.sh", "run_tests.sh"} <= _programs(block)


def _main_script_commands(page):
    """Script and arguments of each run of one; shell variables are put in."""
    commands = []
    for block in _blocks(page, "bash"):
        variables = dict(re.findall(r'^(\w+)="(.*)"$', block, re.MULTILINE))
        for line in block.replace("\\\n", " ").splitlines():
            full = re.sub(r"\$(\w+)", lambda m, v=variables: v[m[1]], line)
            for script in MAIN_SCRIPTS:
                if script in full:
                    commands.append((script, shlex.split(full.split(script, 1)[1])))
    return commands


@pytest.mark.parametrize("page", [p for p in PAGES if _main_script_commands(p)], ids=_name)
def test_options_in_commands_are_understood(page):
    for script, arguments in _main_script_commands(page):
        assert isinstance(parse_options(MAIN_SCRIPTS[script], arguments), Options)


def test_script_options_are_documented_with_their_defaults():
    text = (ROOT / "docs" / "scripts.md").read_text()
    common, own = (_documented_options(part) for part in text.split("### Segmentation"))

    def shown(value):
        if value is None:
            return ""
        return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)

    def defaults(kind):
        return {field.name: shown(field.default) for field in dataclasses.fields(kind)}

    assert common == defaults(ClassificationOptions)
    shared = {field.name for field in dataclasses.fields(Options)}
    of_all = {name: default for name, default in common.items() if name in shared}
    assert of_all | own == defaults(SegmentationOptions)


def _documented_options(text):
    names = {row[0].strip("`-"): row[1] for row in _table_rows(text) if row[0].startswith("`--")}
    return {name: default for name, default in names.items() if " " not in name}


def test_model_zoo_page_lists_every_model_with_its_complexity():
    text = (ROOT / "docs" / "model_zoo.md").read_text()
    rows = {row[0].strip("`"): row for row in _table_rows(text) if row[0].startswith("`")}
    assert set(list_models()) <= set(rows)
    for name in list_models():
        segmentation = name.endswith("_edgeailite")
        model = create_model(name, num_classes=19 if segmentation else 1000)
        # All that a segmentation model does is in proportion to the area.
        size, factor = ((96, 192), 16) if segmentation else ((224, 224), 1)
        report = model_complexity(model, (1, 3, *size))
        digits = 2 if segmentation else 3
        shown = (f"{factor * report.gmacs:.{digits}f}", f"{report.mparams:.2f}")
        assert tuple(rows[name][1:3]) == shown, name


def test_model_zoo_page_links_the_weights_of_each_published_model():
    rows = _table_rows((ROOT / "docs" / "model_zoo.md").read_text())
    linked = {row[0].strip("`") for row in rows if "https://download.pytorch.org" in row[-1]}
    assert linked == {name for name, of in PUBLISHED.items() if of.startswith("torchvision/")}


@pytest.mark.parametrize("page", ["quant_train_module", "quant_calibrate_module"])
def test_wrapper_arguments_are_documented_with_their_defaults(page):
    documented = {}
    for row in _table_rows((ROOT / "docs" / f"{page}.md").read_text()):
        arguments = re.findall(r"`(\w+)`", row[0])
        defaults = re.split(r", (?![^(]*\))", row[1])
        if len(defaults) == len(arguments):
            documented |= dict(zip(arguments, defaults, strict=True))
    wrapper = {
        "quant_train_module": xnn.quantize.QuantTrainModule,
        "quant_calibrate_module": xnn.quantize.QuantCalibrateModule,
    }[page]
    parameters = dict(inspect.signature(_PACT2Module.__init__).parameters)
    parameters |= inspect.signature(wrapper.__init__).parameters
    for name, parameter in parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            assert documented.get(name, "absent").split(" (")[0].strip("`") == repr(
                parameter.default
            ), name


def test_test_module_page_names_every_argument():
    text = (ROOT / "docs" / "quant_test_module.md").read_text()
    parameters = inspect.signature(_PACT2Module.__init__).parameters.values()
    names = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert [name for name in names if f"`{name}`" not in text] == []


@pytest.mark.parametrize(
    ("page", "arithmetic"),
    [
        ("quant_train_module", "scale"),
        ("fx_wrappers", "scale"),
        ("microcontrollers", "fixed_point"),
    ],
)
def test_format_tables_are_those_of_the_registry(page, arithmetic):
    text = (ROOT / "docs" / f"{page}.md").read_text()
    table = re.search(r"^\| Format \| .*\n\|---\|---\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    rows = [f"| `{w.format}` | {w.description} |" for w in writers(arithmetic)]
    assert table[1].splitlines() == rows


def test_the_oldest_opset_in_the_docs_is_the_oldest_that_is_written():
    text = (ROOT / "docs" / "quant_train_module.md").read_text()
    (row,) = [row for row in _table_rows(text) if row[0].startswith("`opset_version is")]
    assert f"this installation writes {OLDEST_OPSET} to ..." in row[0]
    assert row[2] == f"{OLDEST_OPSET} or newer"
    assert f"; {OLDEST_OPSET} and newer are written" in text
    assert f"`opset_version` {OLDEST_OPSET} and newer" in (ROOT / "docs/fx_wrappers.md").read_text()


def test_source_map_is_that_of_the_docstrings():
    tool = runpy.run_path(str(ROOT / "tools" / "source_map.py"))
    page = (ROOT / "docs" / "layout.md").read_text()
    assert page == tool["render"](page), "run python tools/source_map.py"
    for path in (ROOT / "edgeailite").rglob("[!_]*.py"):
        assert tool["summary"](path), path
        assert f"| `{path.name}` |" in page


def test_tables_of_operations_are_those_of_the_engine():
    tool = runpy.run_path(str(ROOT / "tools" / "operation_table.py"))
    page = (ROOT / "docs" / "operations.md").read_text()
    assert page == tool["render"](page), "run python tools/operation_table.py"


def test_reasons_in_the_docs_are_those_of_the_report():
    text = (ROOT / "docs" / "operations.md").read_text()
    section = text.split("## What stays in float")[1].split("## What is refused")[0]
    given = [piece for path in REASONS for piece in _phrases(ROOT / path)]
    assert [piece for piece in given if piece not in section] == []
    shown = [row[0] for row in _table_rows(section)]
    assert [row for row in shown if not any(piece in row for piece in given)] == []


def _phrases(path):
    """Strings with spaces in a file, without docstrings; of f-strings their constant parts."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    docstrings = {id(n.value) for n in nodes if isinstance(n, ast.Expr)}
    strings = [n for n in nodes if isinstance(n, ast.Constant) and id(n) not in docstrings]
    return [n.value.strip() for n in strings if isinstance(n.value, str) and " " in n.value.strip()]


@pytest.mark.parametrize("table", ["main-job-table", "qat-step-table", "ptq-table"])
def test_readme_has_a_place_for_each_measured_table(table):
    text = (ROOT / "README.md").read_text()
    assert 0 <= text.find(f"<!-- {table}:begin -->\n") < text.find(f"<!-- {table}:end -->\n")
