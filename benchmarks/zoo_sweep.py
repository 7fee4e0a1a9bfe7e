"""Every model of torchvision (and timm's CNNs), quantized and compared value by value.

    python benchmarks/zoo_sweep.py                        all of torchvision, WT8SYMP2_AT8SYMP2
    python benchmarks/zoo_sweep.py --qconfig_type WC8_AT8 --models 'resnet*' swin_t
    python benchmarks/zoo_sweep.py --library timm --models 'resnet18*' 'efficientnet_b0*'

For each model, with random weights: trace, calibrate on noise, convert, export, run ONNX Runtime
(optimizations off and on) on further noise. Prints how many output values of the integer graph
differ from evaluation and from ONNX Runtime, how many levels the outputs have (few would make
equality cheap), seconds, peak memory and what stayed in float. Each model runs in a process of its
own; one that fails is a row with its error.
"""

from __future__ import annotations

import fnmatch
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import nn

from edgeailite.quantization import PTCFxModule
from edgeailite.quantization.report import build_report
from edgeailite.quantization.verify import verify

Library = Literal["torchvision", "timm"]

# Inputs are as small as each family allows: 64 pixels where nothing is said.
INPUT_SIZES = {"maxvit": 224, "inception_v3": 96, "vit_h_14": 56, "alexnet": 96}
SIZED_BY_ARGUMENT = {"vit": "image_size"}
# timm's families of convolutional networks, the smallest member of each.
TIMM_CNNS = (
    "resnet18", "resnetv2_50", "resnest14d", "res2net50_26w_4s", "resnext50_32x4d", "seresnet18",
    "densenet121", "dla34", "dpn48b", "vgg11_bn", "inception_v4", "inception_resnet_v2",
    "xception41", "mobilenetv2_050", "mobilenetv3_small_050", "efficientnet_b0",
    "efficientnet_lite0", "tf_efficientnetv2_b0", "mnasnet_050", "semnasnet_075", "spnasnet_100",
    "fbnetc_100", "fbnetv3_b", "ghostnet_050", "ghostnetv2_100", "hardcorenas_a", "tinynet_e",
    "rexnet_100", "regnetx_002", "regnety_002", "hrnet_w18_small", "repvgg_a0", "mobileone_s0",
    "cspresnet50", "cspdarknet53", "darknet53", "nfnet_f0", "dm_nfnet_f0", "nf_resnet50",
    "selecsls42", "skresnet18", "ese_vovnet19b_dw", "hgnet_tiny", "hgnetv2_b0", "lcnet_050",
    "convnext_atto", "convnextv2_atto", "convmixer_768_32", "edgenext_xx_small",
    "mobilenetv4_conv_small", "starnet_s1", "fastvit_t8", "repghostnet_050", "tresnet_m",
    "ecaresnet26t", "gernet_s", "pnasnet5large", "rdnet_tiny", "inception_next_atto", "repvit_m0_9",
    "xcit_nano_12_p16_224",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What is swept."""

    library: Library = "torchvision"
    """Whose models."""
    models: tuple[str, ...] = ("*",)
    """Names, or patterns of names."""
    qconfig_type: str = "WT8SYMP2_AT8SYMP2"
    """Preset of the fx wrappers."""
    batch_size: int = 4
    """Images of a batch."""
    num_batches: int = 2
    """Batches to calibrate on, and batches to compare on."""
    json_path: Path | None = None
    """Also write all rows to this file."""
    jobs: int = 1
    """Models at a time; each computes with one thread if there are several."""
    timeout: int = 1200
    """Seconds after which a model counts as failed."""


@dataclass
class Row:
    """What was found for one model."""

    model: str
    params: int = 0
    layers: int = 0
    seconds: float = 0.0
    peak_mb: float = 0.0
    values: int = 0
    levels: int = 0
    differ: dict[str, int] = field(default_factory=dict)
    steps: int = 0
    floats: list[str] = field(default_factory=list)
    stage: str = "create"
    error: str = ""


def model_names(options: Options) -> list[str]:
    """The models that `options` ask for, in the library's order."""
    if options.library == "timm":
        names = list(TIMM_CNNS)
    else:
        from torchvision import models

        names = models.list_models(module=models) + models.list_models(module=models.segmentation)
    return [n for n in names if any(fnmatch.fnmatch(n, p) for p in options.models)]


def create(name: str, library: Library, size: int) -> nn.Module:
    """The model with random weights and 100 classes."""
    torch.manual_seed(0)
    if library == "timm":
        import timm

        return timm.create_model(name, pretrained=False, num_classes=100)
    from torchvision import models

    if name in models.list_models(module=models.segmentation):
        return models.get_model(name, weights=None, weights_backbone=None, num_classes=5)
    sized = {a: size for prefix, a in SIZED_BY_ARGUMENT.items() if name.startswith(prefix)}
    if name in ("googlenet", "inception_v3"):
        sized |= {"init_weights": True, "aux_logits": False}  # type: ignore[dict-item]
    return models.get_model(name, weights=None, num_classes=100, **sized)


def sweep_one(name: str, options: Options) -> Row:
    """Take one model through all stages; an error ends up in the row with its stage."""
    row = Row(name)
    started = time.perf_counter()
    size = next((s for p, s in INPUT_SIZES.items() if name.startswith(p)), 64)
    try:
        _run_stages(row, name, size, options)
    except Exception as error:
        row.error = f"{type(error).__name__}: {error}"
    row.seconds = time.perf_counter() - started
    row.peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return row


def _run_stages(row: Row, name: str, size: int, options: Options) -> None:
    model = create(name, options.library, size).eval()
    row.params = sum(p.numel() for p in model.parameters())

    def noise() -> list[torch.Tensor]:
        shape = (options.batch_size, 3, size, size)
        return [torch.randn(shape) for _ in range(options.num_batches)]

    _revive(model)
    _warm_up(model, noise())
    row.stage = "trace"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapper = PTCFxModule(model, qconfig_type=options.qconfig_type)
        row.stage = "calibrate"
        wrapper.calibrate(noise())
        row.stage = "report"
        report = build_report(wrapper)
        row.layers, row.floats = len(report.layers), [f.operation for f in report.floats.values()]
        row.stage = "export"
        with tempfile.TemporaryDirectory() as folder:
            path = wrapper.export(noise()[0], Path(folder) / "model.onnx")
            row.stage = "compare"
            found = verify(wrapper, noise(), path)
            outputs = wrapper(noise()[0])
            outputs = outputs["out"] if isinstance(outputs, dict) else outputs
            row.levels = len(outputs.unique())
    row.values, row.differ, row.stage = found.num_values, dict(found.mismatches), "done"
    row.steps = found.max_steps


@torch.no_grad()
def _revive(model: nn.Module) -> None:
    """Weights and gains that start at zero (heads, last batch norms, layer scales) get values."""
    for parameter in model.parameters():
        if not parameter.any() and parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.02)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)


@torch.no_grad()
def _warm_up(model: nn.Module, batches: list[torch.Tensor]) -> None:
    """Batch norm statistics of the noise: with those of a new model the signal dies or explodes."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train()
        norm.momentum = None
    for batch in batches if norms else []:
        model(batch)
    model.eval()


def print_row(row: Row) -> None:
    """One line of the table."""
    counts = " ".join(f"{n:>7}" for n in row.differ.values()) or " " * 23
    kinds = sorted({f.split(" ")[0] for f in row.floats})
    tail = f"{row.stage}: {row.error}" if row.error else f"float: {', '.join(kinds) or 'nothing'}"
    print(
        f"{row.model:32} {row.params / 1e6:7.1f} {row.layers:6} {row.values:6} {row.levels:6} "
        f"{counts} {row.steps:5} {row.seconds:6.1f} {row.peak_mb:7.0f}  {tail}",
        flush=True,
    )


def main(options: Options) -> int:
    """Sweep, print the table, return the number of models that failed or differ."""
    names = model_names(options)
    if not names:
        print(f"error: no model of {options.library} matches {options.models}", file=sys.stderr)
        return 2
    print(f"{len(names)} models of {options.library}, {options.qconfig_type}")
    print(
        f"{'model':32} {'params':>7} {'layers':>6} {'values':>6} {'levels':>6} "
        f"{'eval':>7} {'off':>7} {'on':>7} {'steps':>5} {'s':>6} {'MB':>7}"
    )
    rows = []
    pool = ThreadPoolExecutor(options.jobs)
    for row in pool.map(lambda name: _in_own_process(name, options), names):
        rows.append(row)
        print_row(row)
        if options.json_path is not None:
            options.json_path.write_text(json.dumps([asdict(r) for r in rows], indent=1))
    failed = [r for r in rows if r.error]
    unequal = [r for r in rows if not r.error and any(r.differ.values())]
    print(
        f"{len(rows)} models: {len(rows) - len(failed)} traced, exported and run, "
        f"{len(rows) - len(failed) - len(unequal)} equal in every value; "
        f"failed: {', '.join(r.model for r in failed) or 'none'}; "
        f"unequal: {', '.join(r.model for r in unequal) or 'none'}"
    )
    return int(bool(failed or unequal))


def _in_own_process(name: str, options: Options) -> Row:
    command = [
        sys.executable, __file__, "--library", options.library, "--models", name, "--qconfig_type",
        options.qconfig_type, "--batch_size", str(options.batch_size), "--num_batches",
        str(options.num_batches), "--only",
    ]  # fmt: skip
    threads = {"OMP_NUM_THREADS": "1"} if options.jobs > 1 else {}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=options.timeout,
            env={**os.environ, **threads},
        )
        return Row(**json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        return Row(name, error=f"took more than {options.timeout} s")
    except (IndexError, json.JSONDecodeError, TypeError):
        return Row(name, error=f"exit status {done.returncode}: {done.stderr.strip()[-300:]}")


if __name__ == "__main__":
    if sys.argv[-1] == "--only":
        chosen = tyro.cli(Options, args=sys.argv[1:-1])
        print(json.dumps(asdict(sweep_one(chosen.models[0], chosen))))
    else:
        sys.exit(main(tyro.cli(Options)))
