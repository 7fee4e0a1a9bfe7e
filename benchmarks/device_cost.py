"""Cost of networks as C: instructions on an emulated Cortex-M4, time on this machine, memory.

    python benchmarks/device_cost.py
    python benchmarks/device_cost.py --networks resnet8 --scales free

The Cortex-M4 is QEMU's (``gcc-arm-none-eabi``, ``libnewlib-arm-none-eabi``, ``qemu-system-arm``).
It counts instructions, which are not cycles: loads and branches cost more on silicon. Without
compiler or emulator those columns are empty. Weights are random; the outputs are compared with
PyTorch's. Published for ResNet8 on a Cortex-M4, in cycles for each multiply-accumulate: 2.1 for
X-CUBE-AI 8.0, 3.7 for microTVM with CMSIS-NN.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from device_networks import NETWORKS, multiply_accumulates
from torch import nn

from edgeailite.quantization import PTCFxModule, QuantCalibrateModule

HERE = Path(__file__).parent / "device"
SCALES = {
    "power of two": lambda model, x: QuantCalibrateModule(model, x),
    "free": lambda model, x: PTCFxModule(model, qconfig_type="WC8_AT8", example_inputs=x),
}
CORE = ["-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"]
NANOSECONDS_A_TICK = 40  # with -icount shift=0 an instruction takes one
EMULATOR = ["qemu-system-arm", "-M", "mps2-an386", "-display", "none", "-monitor", "none"]
EMULATOR += ["-serial", "none", "-semihosting-config", "enable=on,target=native"]
EMULATOR += ["-icount", "shift=0", "-kernel"]


def randomized(model: nn.Module) -> nn.Module:
    """Give batch norms the statistics of a trained network."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.3, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


def compiled(folder: Path, compiler: str, flags: list[str], more: list[str]) -> Path:
    """Compile network, kernels and ``measure.c``."""
    sources = ["net.c", "edgeailite_kernels.c", str(HERE / "measure.c")]
    command = [compiler, *flags, f"-I{folder}", *sources, *more, "-o", "measure"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "measure"


def on_this_machine(folder: Path) -> tuple[float, int]:
    """Milliseconds of one run with one thread, and differing bytes."""
    program = compiled(folder, "gcc", ["-std=gnu99", "-O3", "-march=native"], [])
    best, wrong = subprocess.run([program], capture_output=True, check=True).stdout.split()
    return int(best) / 1e6, int(wrong)


def on_cortex_m4(folder: Path, flags: list[str]) -> tuple[int, int, int]:
    """Instructions of one run, differing bytes, and bytes of flash."""
    found = subprocess.run(
        ["arm-none-eabi-gcc", *CORE, "-print-file-name=rdimon-crt0.o"],
        capture_output=True,
        check=True,
        text=True,
    )
    more = [str(HERE / "start_cortex_m4.c"), "-T", str(HERE / "mps2_an386.ld")]
    more += ["--specs=rdimon.specs", "-nostartfiles", found.stdout.strip(), "-lc", "-lrdimon"]
    program = compiled(folder, "arm-none-eabi-gcc", [*CORE, "-std=gnu99", *flags], more)
    run = subprocess.run(
        [*EMULATOR, program], capture_output=True, check=True, stdin=subprocess.DEVNULL, timeout=300
    )
    ticks, wrong = run.stdout.split()
    return int(ticks) * NANOSECONDS_A_TICK, int(wrong), flash(folder, flags)


def flash(folder: Path, flags: list[str]) -> int:
    """Bytes of constants and code of network and kernels, without what nothing calls."""
    objects = []
    for source in ("net.c", "edgeailite_kernels.c"):
        made = str(folder / f"{source}.o")
        options = ["-ffunction-sections", "-fdata-sections", "-c", "-o", made]
        subprocess.run(
            ["arm-none-eabi-gcc", *CORE, "-std=gnu99", *flags, *options, source],
            cwd=folder,
            check=True,
        )
        objects.append(made)
    linked = str(folder / "linked")
    keep = ["-nostartfiles", "-Wl,--gc-sections,-e,net_run", "-lc"]
    subprocess.run(["arm-none-eabi-gcc", *CORE, *objects, *keep, "-o", linked], check=True)
    sizes = subprocess.run(["arm-none-eabi-size", linked], capture_output=True, text=True).stdout
    text, data = sizes.splitlines()[1].split()[:2]
    return int(text) + int(data)


def measure(name: str, scales: str, folder: Path) -> str:
    """One row of the table."""
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    model, x = randomized(make()), torch.randn(8, *shape)
    macs = multiply_accumulates(model, x)
    wrapper = SCALES[scales](model, x)
    wrapper.verbose = False
    header = wrapper.calibrate([x]).export_c(x[:1], folder, "net")[0].read_text()
    ram = int(header.split("ARENA_SIZE ")[1].split()[0])
    milliseconds, wrong = on_this_machine(folder)
    cells = [name, scales, f"{macs / 1e3:.0f}", f"{milliseconds:.3f}"]
    if shutil.which("arm-none-eabi-gcc") and shutil.which("qemu-system-arm"):
        for flags in (["-O2", "-DEDGEAILITE_PORTABLE"], ["-O2"]):
            instructions, others, size = on_cortex_m4(folder, flags)
            cells.append(f"{instructions / macs:.2f}")
            wrong += others
        cells.append(f"{size}")
    else:
        cells += ["", "", ""]
    return f"| {' | '.join([*cells, str(ram), str(wrong)])} |"


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--scales", nargs="*", choices=SCALES, default=list(SCALES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| network | scales | thousand MACs | ms, x86, one thread | Cortex-M4, portable: "
        "instructions a MAC | with DSP | flash | RAM | differing bytes |\n" + "|---" * 9 + "|"
    )
    for name in args.networks:
        for scales in args.scales:
            with tempfile.TemporaryDirectory() as folder:
                print(measure(name, scales, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
