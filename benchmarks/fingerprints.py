"""Fingerprints of all that the engine computes, to prove that a change of the code moves no number.

    python benchmarks/fingerprints.py --checkout DIR --out a.json           record, some minutes
    python benchmarks/fingerprints.py --checkout DIR --out a1.json --shard 1/2
    python benchmarks/fingerprints.py --checkout DIR --only 'transformer / pact2' --repeat
    python benchmarks/fingerprints.py --compare a.json b.json               exits 1 on differences
    python benchmarks/fingerprints.py --compare a1.json,a2.json b.json      shards of one recording

A case is a network in a wrapper with a configuration. Of each: the loss curve of a short training
(or a calibration), parameters, state dict, output; the integer graph's output and state; report and
verification; of some the ONNX files of all formats; C files. Only public names are used, those that
the new and the old code have in common. Numbers depend on the machine and on PyTorch: record both
sides on the same one.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import platform
import re
import sys
import tempfile
import time
import warnings
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from fingerprint_cases import Case

BATCH = 4
Entries = list[list[str]]  # [label, digest], in order
Record = dict[str, Entries]


@dataclass(frozen=True)
class Options:
    """Command line."""

    checkout: Path | None = None
    """Folder whose edgeailite is recorded."""
    out: Path | None = None
    """JSON file to write."""
    compare: tuple[str, str] | None = None
    """Two recordings; each is a file, or several separated by commas."""
    shard: str = "1/1"
    """Part of the cases: i/n, counted from 1."""
    only: str = ""
    """Only cases with this in their name."""
    repeat: bool = False
    """Record each case twice, and fail where the two differ."""


# ---- digests ------------------------------------------------------------------------------------


def digest(value: Any) -> str:
    """Sixteen hexadecimal digits for tensors, numbers, texts, and containers of them."""
    found = hashlib.sha256()
    for part in _parts(value):
        found.update(part)
        found.update(b"\0")
    return found.hexdigest()[:16]


def _parts(value: Any) -> Iterator[bytes]:
    if isinstance(value, Tensor):
        value = value.detach().contiguous()
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        yield value.reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype} {value.shape}".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif isinstance(value, bytes):
        yield value
    elif isinstance(value, Enum):
        yield str(value.value).encode()
    elif isinstance(value, dict):
        yield b"dict"
        for key, entry in value.items():
            yield from _parts(key)
            yield from _parts(entry)
    elif isinstance(value, list | tuple):
        yield f"{len(value)} entries".encode()
        for entry in value:
            yield from _parts(entry)
    else:
        yield f"{type(value).__name__} {value!r}".encode()


def tensors(output: Any) -> Entries:
    """Digest of each tensor of a model's output."""
    leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    return [[f"output {i}", digest(leaf)] for i, leaf in enumerate(leaves)]


def state(module: nn.Module) -> Entries:
    """Digest of each entry of the state dict."""
    return [[key, digest(value)] for key, value in module.state_dict().items()]


def parameters(module: nn.Module) -> Entries:
    """Shape and ``requires_grad`` of each parameter, by name."""
    named = module.named_parameters()
    return [[name, digest((tuple(p.shape), p.requires_grad))] for name, p in named]


def lines(text: str) -> Entries:
    """Digest of each line, under its beginning."""
    return [[f"{i}: {line.strip()[:60]}", digest(line)] for i, line in enumerate(text.split("\n"))]


def numbers(text: str) -> Entries:
    """Digest of the numbers of each line that has some: what other words leave as it is."""
    found = [re.findall(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", line) for line in text.split("\n")]
    return [[f"line {i}", digest(line)] for i, line in enumerate(filter(None, found))]


def onnx_nodes(path: Path) -> Entries:
    """Operators in order, with the names of their values and their attributes."""
    model = onnx.load(path)
    bodies = [("", model.graph.node), *((f.name, f.node) for f in model.functions)]
    found: Entries = []
    for owner, nodes in bodies:
        for node in nodes:
            for attribute in node.attribute:
                attribute.ClearField("doc_string")
            kept = sorted((a.name, a.SerializeToString(deterministic=True)) for a in node.attribute)
            content = (node.domain, node.op_type, list(node.input), list(node.output), kept)
            found.append([f"{owner}{node.op_type} -> {', '.join(node.output)}", digest(content)])
    return found


def onnx_tensors(path: Path) -> Entries:
    """Initializers, ends of the graph, opsets."""
    model = onnx.load(path)
    found = [
        [t.name, digest((t.data_type, list(t.dims), onnx.numpy_helper.to_array(t)))]
        for t in model.graph.initializer
    ]
    for role, ends in (("input", model.graph.input), ("output", model.graph.output)):
        kept = [(e.name, e.type.SerializeToString(deterministic=True)) for e in ends]
        found.append([f"graph {role}s", digest(kept)])
    opsets = [(o.domain, o.version) for o in model.opset_import]
    return [*found, ["opsets", digest((model.ir_version, opsets))]]


# ---- recording ----------------------------------------------------------------------------------


def make_batches(case: Case, count: int, seed: int) -> list[tuple[Tensor, ...]]:
    """Inputs of the network and, last, classes."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        shapes = case.network.shapes
        inputs = [torch.randn(BATCH, *s, generator=generator) * case.network.scale for s in shapes]
        found.append((*inputs, torch.randint(0, 5, (BATCH,), generator=generator)))
    return found


def make_model(case: Case) -> nn.Module:
    """The float network, with batch norms as of a trained one: measured, some gains negative."""
    torch.manual_seed(zlib.crc32(case.name.encode()))
    model = case.network.make()
    kind = nn.modules.batchnorm._BatchNorm
    norms = [(m, m.momentum) for m in model.modules() if isinstance(m, kind)]
    for norm, _ in norms:
        norm.momentum = None  # the average of all batches
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.4, 1.5)
            nn.init.uniform_(norm.bias, -0.3, 0.3)
            with torch.no_grad():
                norm.weight[-1] *= -1.0
    with torch.no_grad():
        for *inputs, _ in make_batches(case, 2, 4):
            model(*inputs)
    for norm, momentum in norms:
        norm.momentum = momentum
    return model


def make_wrapper(case: Case, wrapper: str | None = None) -> Any:
    """The network in its wrapper, or in another one with the same arguments."""
    import edgeailite.quantization

    model, name = make_model(case), wrapper or case.config.wrapper
    batches = [batch[:-1] for batch in make_batches(case, 2, 0)]
    options = case.config.options
    options = {k: v(model, batches) if callable(v) else v for k, v in options.items()}
    role = "example_inputs" if "Fx" in name else "dummy_input"
    return getattr(edgeailite.quantization, name)(model, **{role: batches[0]}, **options)


def _loss(output: Any, classes: Tensor) -> Tensor:
    if isinstance(output, Tensor) and output.dim() == 2:
        return F.cross_entropy(output, classes)
    return sum(y.sub(0.2).square().mean() for y in tree_leaves(output))


def train(wrapper: Any, case: Case, epochs: int, learns: bool = True) -> list[Tensor]:
    """Epochs on the same batches; returns the losses."""
    learning = [p for p in wrapper.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, case.network.rate, momentum=0.9)
    losses = []
    for _ in range(epochs):
        wrapper.train()
        for *inputs, classes in make_batches(case, case.network.steps, 1):
            loss = _loss(wrapper(*inputs), classes)
            losses.append(loss.detach())
            if learns:
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(learning, 1.0)
                optimizer.step()
    return losses


def fit(wrapper: Any, case: Case) -> Entries:
    """Train or calibrate, as the case's mode says; digests of what that gave."""
    mode, epochs = case.config.mode, 4
    batches = [batch[:-1] for batch in make_batches(case, case.network.steps, 1)]
    if mode == "calibrate":
        wrapper.calibrate(batches, quality=case.config.quality)
        gains = [(g.method, g.num_changed, g.sqnr) for g in wrapper.post_training]
        wrapper.post_training = []  # its seconds would be in the report
        return [[f"gain of {gain[0]}", digest(gain)] for gain in gains]
    if mode == "test":
        source = make_wrapper(case, "QuantCalibrateModule").calibrate(batches)
        wrapper.module.load_state_dict(source.module.state_dict())
        return []
    losses = train(wrapper, case, epochs // 2, mode != "loop")
    if mode == "resume":
        checkpoint = io.BytesIO()
        torch.save(wrapper.state_dict(), checkpoint)
        checkpoint.seek(0)
        wrapper.load_state_dict(torch.load(checkpoint, weights_only=True))
    losses += train(wrapper, case, epochs - epochs // 2, mode != "loop")
    if mode == "norms":
        wrapper.reestimate_batch_norms(batches)
    return [[f"step {i}", digest(loss)] for i, loss in enumerate(losses)]


class Recorder:
    """All fingerprints of a case.

    Args:
        case: The case.
        checkout: Left out of messages.

    Attributes:
        record: Fingerprints by what they are of.
    """

    def __init__(self, case: Case, checkout: Path) -> None:
        self.case, self.checkout = case, checkout
        self.record: Record = {}
        self.inputs = [batch[:-1] for batch in make_batches(case, 2, 2)]

    def add(self, what: str, make: Callable[[], Entries]) -> bool:
        """Enter what `make` returns, or its error; says whether there was none."""
        try:
            self.record[what] = make()
            return True
        except Exception as error:
            message = str(error).strip().split("\n")[0].replace(str(self.checkout), "CHECKOUT")
            message = re.sub(r"0x[0-9a-f]+|/tmp/\S+", "...", message)
            self.record[what] = [["error", f"{type(error).__name__}: {message}"]]
            return False

    def run(self) -> Record:
        """Everything."""
        printed = io.StringIO()
        with (
            contextlib.redirect_stdout(printed),
            tempfile.TemporaryDirectory() as folder,
            warnings.catch_warnings(record=True) as warned,
        ):
            warnings.simplefilter("always")
            self._run(Path(folder))
        here = (str(self.checkout), str(Path(__file__).parent))  # PyTorch's own come and go
        kept = dict.fromkeys(str(w.message) for w in warned if w.filename.startswith(here))
        self.record["warnings"] = [[text[:60], digest(text)] for text in kept]
        if not self.case.config.quality:  # it prints seconds
            self.record["printed"] = lines(printed.getvalue())
        return self.record

    def _run(self, folder: Path) -> None:
        made: list[Any] = []
        if not self.add("wrapper", lambda: made.append(make_wrapper(self.case)) or []):
            return
        wrapper = made[0]
        torch.manual_seed(3)  # dropout
        self.add("training", lambda: fit(wrapper, self.case))
        self.add("parameters", lambda: parameters(wrapper))
        self.add("state", lambda: state(wrapper))
        self.add("evaluation", lambda: wrapper.eval() and [])
        self.add("output", lambda: self._outputs(wrapper))
        self.add("report", lambda: self._report(wrapper, folder))
        self.add("verification", lambda: self._verify(wrapper))
        self.add("integer graph", lambda: self._convert(wrapper, folder))
        for format in self.case.formats:
            self._export(wrapper, format, folder)

    @torch.no_grad()
    def _outputs(self, model: nn.Module) -> Entries:
        return [entry for inputs in self.inputs for entry in tensors(model(*inputs))]

    def _report(self, wrapper: Any, folder: Path) -> Entries:
        from edgeailite.quantization.report import build_report, write_html

        report = build_report(wrapper, self.inputs)
        if self.case.formats:
            path = write_html(report, folder / "report.html")
            self.add("HTML", lambda: lines(path.read_text(encoding="utf-8")))
        self.add("report numbers", lambda: numbers(str(report)))
        return lines(str(report))

    def _verify(self, wrapper: Any, path: Path | None = None) -> Entries:
        from edgeailite.quantization.verify import verify

        result = verify(wrapper, self.inputs, path)
        result.cpu_note = ""
        return lines(str(result))

    def _convert(self, wrapper: Any, folder: Path) -> Entries:
        options = {"output_int": False} if self.case.config.real_outputs else {}
        converted = wrapper.convert(**options)
        self.add("integer state", lambda: state(converted))
        if "TINPU" in self.case.config.wrapper:
            self.add("C files", lambda: self._write_c(converted, folder / "c"))
        return self._outputs(converted)

    def _write_c(self, converted: Any, folder: Path) -> Entries:
        paths = converted.export_c(self.inputs[0][0], folder, "net")
        return [[path.name, digest(path.read_bytes())] for path in paths]

    def _export(self, wrapper: Any, format: str, folder: Path) -> None:
        name, _, opset = format.partition("@")
        role = "model_qconfig_format" if "TinyML" in self.case.config.wrapper else "format"
        options = {role: name} | ({"opset_version": int(opset)} if opset else {})
        path = folder / f"{name}.onnx"

        def write() -> Entries:
            wrapper.export(self.inputs[0], path, **options)
            return onnx_nodes(path)

        if not self.add(f"nodes of {format}", write):
            return
        self.add(f"tensors of {format}", lambda: onnx_tensors(path))
        settings = sorted(folder.glob("*.json"))
        self.add(
            f"settings of {format}", lambda: [[p.name, digest(p.read_text())] for p in settings]
        )
        if name in ("QDQ_MODEL", "TINPU_INT_MODEL"):
            self.add(f"verification of {format}", lambda: self._verify(wrapper, path))


def use_checkout(checkout: Path) -> None:
    """Import edgeailite from this folder.

    Raises:
        RuntimeError: It came from elsewhere.
    """
    sys.path[:0] = [str(checkout), str(checkout / "compat")]
    import edgeailite

    if checkout not in Path(edgeailite.__file__).resolve().parents:
        raise RuntimeError(f"edgeailite is {edgeailite.__file__}, which is not in {checkout}.")


def record(options: Options) -> int:
    """Run the cases and write them; 1 if a repetition differs."""
    assert options.checkout is not None
    checkout = options.checkout.resolve()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    use_checkout(checkout)
    from fingerprint_cases import make_cases

    index, count = map(int, options.shard.split("/"))
    cases = [case for case in make_cases()[index - 1 :: count] if options.only in case.name]
    records: dict[str, Record] = {}
    failed = 0
    for position, case in enumerate(cases, start=1):
        started = time.perf_counter()
        records[case.name] = Recorder(case, checkout).run()
        seconds = time.perf_counter() - started
        print(f"{position:4}/{len(cases)} {seconds:6.1f} s  {case.name}", flush=True)
        if options.repeat:
            again = {case.name: Recorder(case, checkout).run()}
            failed += show_comparison({case.name: records[case.name]}, again)
    if options.out is not None:
        made = {"torch": torch.__version__, "machine": platform.node(), "cases": records}
        options.out.write_text(json.dumps(made, indent=0) + "\n", encoding="utf-8")
    return min(failed, 1)


# ---- comparing ----------------------------------------------------------------------------------


def first_difference(a: Entries | None, b: Entries | None) -> str | None:
    """The label of the first entry that differs; None if all are equal."""
    if a is None or b is None:
        return f"only in the {'second' if a is None else 'first'} recording"
    for (label, value), (other_label, other) in zip(a, b, strict=False):
        if label != other_label:
            return f"{label} became {other_label}"
        if value != other:
            return f"{label}: {value} became {other}"
    if len(a) != len(b):
        longer, place = (a, "first") if len(a) > len(b) else (b, "second")
        return f"{longer[min(len(a), len(b))][0]} only in the {place} recording"
    return None


def load(paths: str) -> dict[str, Record]:
    """The cases of one recording."""
    found: dict[str, Record] = {}
    for path in paths.split(","):
        found |= json.loads(Path(path).read_text(encoding="utf-8"))["cases"]
    return found


def show_comparison(first: dict[str, Record], second: dict[str, Record]) -> int:
    """Print all that differs, with its first difference; returns how many fingerprints do."""
    count = 0
    for name in dict.fromkeys([*first, *second]):
        a, b = first.get(name), second.get(name)
        if a is None or b is None:
            print(f"{name}: only in the {'second' if a is None else 'first'} recording")
            count += 1
            continue
        for what in dict.fromkeys([*a, *b]):
            difference = first_difference(a.get(what), b.get(what))
            if difference is not None:
                print(f"{name}: {what} differs: {difference}")
                count += 1
    return count


def show_table(first: dict[str, Record], second: dict[str, Record]) -> None:
    """Print networks by what was compared: how many fingerprints are equal, of how many."""
    equal: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for name in dict.fromkeys([*first, *second]):
        a, b = first.get(name, {}), second.get(name, {})
        for what in dict.fromkeys([*a, *b]):
            kind = "ONNX" if " of " in what else what
            row = equal[name.split(" / ")[0]]
            row[kind].append(first_difference(a.get(what), b.get(what)) is None)
    kinds = list(dict.fromkeys(kind for row in equal.values() for kind in row))
    print(" ".join([f"{'equal':16}", *(f"{kind:>13}" for kind in kinds)]))
    for network, row in equal.items():
        cells = [f"{sum(row[k])}/{len(row[k])}" if k in row else "-" for k in kinds]
        print(" ".join([f"{network:16}", *(f"{cell:>13}" for cell in cells)]))


def compare(paths: tuple[str, str]) -> int:
    """Compare two recordings; 1 if they differ."""
    first, second = map(load, paths)
    show_table(first, second)
    count = show_comparison(first, second)
    total = sum(len(case) for case in first.values())
    print(
        f"{len(first)} cases, {total} fingerprints: {f'{count} differ' if count else 'all equal'}"
    )
    return min(count, 1)


def main() -> int:
    """Record or compare, as the command line says."""
    options = tyro.cli(Options)
    if options.compare is not None:
        return compare(options.compare)
    if options.checkout is None:
        print("Give --checkout to record, or --compare.")
        return 2
    return record(options)


if __name__ == "__main__":
    sys.exit(main())
