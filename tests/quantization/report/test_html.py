import functools
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

from edgeailite.quantization.report import (
    ActivationEntry,
    FloatEntry,
    Histogram,
    LayerEntry,
    ModelSize,
    Report,
    build_report,
    write_html,
)
from edgeailite.quantization.report.html import (
    decibel_words,
    number_words,
    percent_words,
    quality,
    render_html,
    size_words,
    summary,
    worst,
)
from tests.quantization.helpers import trained
from tests.quantization.zoo import Residual

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None
)
VOID = {"meta", "link", "input", "br"}
HOSTILE = "<script>document.documentElement.dataset.error = 'injected'</script>&\"'"


class Page(HTMLParser):
    """Elements with their attributes, text by element, and whether all that opens closes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.rows, self.scripts = [], [], {}, []
        self.table = None
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.table = dict(attrs)["id"]
            self.rows[self.table] = []
        elif tag == "tr":
            self.rows[self.table].append([])
        elif tag in ("th", "td"):
            self.rows[self.table][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)
        if self.table and self.rows[self.table] and {"th", "td"} & set(self.open):
            self.rows[self.table][-1][-1] += data.strip()


@functools.cache
def _report():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.RReLU(), nn.Conv2d(4, 4, 1), nn.ReLU())
    return build_report(trained(model, [(3, 8, 8)]), [torch.randn(4, 3, 8, 8)])


def _large(num_layers):
    histogram = Histogram(-1.0, 1.0, [10**k % 977 for k in range(64)])
    layers, activations = [], []
    for i in range(num_layers):
        path = f"backbone.stage{i % 4}.blocks.{i}.depthwise_separable.conv"
        layers.append(
            LayerEntry(
                2 * i + 1, path, 1, "Conv2d", "int8 per-channel free scale", 1.23456, 45.678,
                (-1.0123456789, 1.0987654321), (-1.0123456789, 1.0), histogram, 9216, 33.3333333333,
            )
        )  # fmt: skip
        activations.append(
            ActivationEntry(
                2 * i + 2, f"{path}.activation_q", 1, "uint8 per-tensor affine free scale",
                (-1.0123456789, 1.0), (-1.0123456789, 1.0), 0.00789012345, 10, False, (-2.0, 2.0),
                0.9876543, histogram, 0.0123456, 40.123456789, 30.123456789,
            )
        )  # fmt: skip
    return Report(layers, activations, {}, [], ModelSize(4_000_000, 1_000_000), 64)


def test_tables_hold_every_entry():
    report = _report()
    rows = Page(render_html(report, "net")).rows
    assert [r[0] for r in rows["layers"][1:]] == [e.name for e in report.layers]
    assert [r[0] for r in rows["activations"][1:]] == [e.name for e in report.activations]
    assert [r[:2] for r in rows["floats"][1:]] == [["1", "RReLU"]]
    assert rows["layers"][1][-1] == decibel_words(report.layers[0].output_sqnr)
    assert all(len(r) == len(rows["layers"][0]) for r in rows["layers"])
    assert all(len(r) == len(rows["activations"][0]) for r in rows["activations"])


def test_headers_sort_and_say_so():
    elements = Page(render_html(_report())).elements
    sortable = [a for tag, a in elements if tag == "th" and "aria-sort" in a]
    assert {a["aria-sort"] for a in sortable} == {"none", "ascending"}
    assert len([tag for tag, _ in elements if tag == "button"]) == len(sortable)


def test_nothing_outside_of_the_file_is_named():
    text = render_html(_report())
    page = Page(text)
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    assert not any("src" in a for _, a in page.elements)
    assert [a["href"] for _, a in page.elements if "href" in a] == ["data:,"]
    assert not re.search(r"https?:|@import|url\(|fetch\(|XMLHttpRequest|import\(", text)


def test_what_comes_from_the_model_is_escaped():
    report = Report(floats={HOSTILE: FloatEntry(HOSTILE, HOSTILE)}, warnings=[HOSTILE])
    text = render_html(report, HOSTILE)
    page = Page(text)
    assert len(page.scripts) == 1
    assert "injected" not in page.scripts[0]
    assert page.rows["floats"][1] == [HOSTILE] * 3


def test_without_data_and_without_layers():
    model = trained(Residual(), [(3, 8, 8)])
    text = render_html(build_report(model))
    assert "the report was made without data" in text
    assert "Nothing: every operation between the grids is computed in integers" in text
    assert Page(text).rows["activations"][1][-1] == "\N{EN DASH}"
    assert Page(render_html(Report())).rows["layers"] == [Page(text).rows["layers"][0]]


def test_two_hundred_layers_are_light(tmp_path):
    path = write_html(_large(200), tmp_path / "report.html")
    assert path.stat().st_size < 1_000_000


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_html(Report(), tmp_path / "new" / "report.html", "first")

    def fail(*_args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_html(Report(), path, "second")
    assert "<title>first</title>" in path.read_text()
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_summary_and_worst_places():
    report = _report()
    cards = {card.label: card for card in summary(report)}
    assert cards["Quantized layers"].value == "2"
    assert cards["Quantized layers"].note == "2 Conv2d"
    assert cards["Weights"] == ("Weights", "int8", "per-tensor power-of-two (2)")
    assert cards["Stays in float"].value == "1"
    assert "on 4 inputs" in cards["SQNR at the end"].note
    lists = worst(report)
    assert len(lists) == 3
    assert all([v for _, v in x.entries] == sorted(v for _, v in x.entries) for x in lists)
    assert [card.label for card in summary(Report())].count("SQNR at the end") == 0
    assert worst(Report()) == []


def test_words():
    assert [size_words(n) for n in (12, 3456, 3_456_789)] == ["12 B", "3.456 kB", "3.457 MB"]
    assert size_words(5_000_000_000) == "5 GB"
    assert [percent_words(v) for v in (None, 0.0, 0.01234)] == ["\N{EN DASH}", "0", "1.2"]
    assert [decibel_words(v) for v in (None, float("inf"), 1.26)] == ["\N{EN DASH}", "exact", "1.3"]
    assert [number_words(v) for v in (None, 1.23456)] == ["\N{EN DASH}", "1.235"]
    assert [quality(v) for v in (None, 9.9, 15.0, 40.0)] == ["", "poor", "fair", ""]


def _opened(path, folder, address=""):
    """The document after its scripts ran, as the browser writes it; no host can be reached."""
    options = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --disable-dev-shm-usage --dump-dom"
    )
    command = [BROWSER, *options.split(), f"--user-data-dir={folder / 'profile'}"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"{path.as_uri()}{address}"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome")


@needs_browser
def test_a_browser_sorts_by_the_address(tmp_path):
    report = _large(30)
    for i, layer in enumerate(report.layers):
        layer.output_sqnr = None if i == 3 else float("inf") if i == 4 else (i * 7) % 30 + 0.5
    path = write_html(report, tmp_path / "report.html")
    dom = _opened(path, tmp_path, "#sort=layers.output_sqnr.descending")
    page = Page(dom)
    root = next(a for tag, a in page.elements if tag == "html")
    assert root["data-ready"] == "true"
    assert "data-error" not in root
    shown = [row[-1] for row in page.rows["layers"][1:]]
    assert (shown[0], shown[-1]) == ("exact", "\N{EN DASH}")
    numbers = [float(v) for v in shown[1:-1]]
    assert numbers == sorted(numbers, reverse=True)
    header = next(a for tag, a in page.elements if a.get("data-key") == "output_sqnr")
    assert header["aria-sort"] == "descending"
    assert [r[0] for r in page.rows["activations"][1:]] == [e.name for e in report.activations]


CLICKS = """
<script>
const note = (name, value) => { document.documentElement.dataset[name] = value; };
const header = (table, key) => document.querySelector(`#${table} th[data-key=${key}]`);
const first = () => document.querySelector("#layers tbody th").textContent;
header("layers", "path").querySelector("button").click();
note("once", header("layers", "path").getAttribute("aria-sort") + " " + first());
header("layers", "path").querySelector("button").click();
note("twice", header("layers", "path").getAttribute("aria-sort") + " " + first());
note("hash", location.hash);
const input = document.getElementById("filter");
input.value = "SIGMOID";
input.dispatchEvent(new Event("input"));
const visible = document.querySelectorAll("tbody tr:not([hidden]) th");
note("shown", Array.from(visible, (cell) => cell.textContent).join());
note("found", document.getElementById("found").textContent);
document.querySelector("#chart circle").dispatchEvent(new MouseEvent("click", { bubbles: true }));
note("marked", document.querySelectorAll("tr.shown").length);
note("color", getComputedStyle(document.body).backgroundColor);
note("loaded", performance.getEntriesByType("resource").length);
</script>
"""


@needs_browser
def test_a_browser_reacts_to_clicks_and_words_and_loads_nothing(tmp_path):
    path = tmp_path / "report.html"
    path.write_text(render_html(_report()).replace("</body>", f"{CLICKS}</body>"))
    dom = _opened(path, tmp_path)
    root = next(a for tag, a in Page(dom).elements if tag == "html")
    assert "data-error" not in root
    assert root["data-once"] == "ascending 0"
    assert root["data-twice"] == "descending 2"
    assert root["data-hash"] == "#sort=layers.path.descending"
    assert root["data-shown"] == "1"
    report = _report()
    rows = sum(map(len, (report.layers, report.activations, report.floats, report.memory.layers)))
    assert root["data-found"] == f"1 of {rows} rows"
    assert root["data-marked"] == "1"
    assert root["data-color"] == "rgb(246, 247, 249)"
    assert root["data-loaded"] == "0"


@needs_browser
def test_a_browser_shows_hostile_names_as_text(tmp_path):
    report = Report(floats={HOSTILE: FloatEntry(HOSTILE, HOSTILE)}, warnings=[HOSTILE])
    dom = _opened(write_html(report, tmp_path / "report.html", HOSTILE), tmp_path)
    assert "data-error" not in next(a for tag, a in Page(dom).elements if tag == "html")
