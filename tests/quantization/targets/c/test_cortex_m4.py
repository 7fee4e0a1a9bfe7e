"""Kernels for a Cortex-M4, with and without DSP instructions, on QEMU's."""

import shutil

import device_cost
import pytest
import torch

from tests.quantization.targets.c.test_networks import SCALES, Images, Series, calibrated

TOOLS = "arm-none-eabi-gcc", "qemu-system-arm"


@pytest.mark.skipif(
    not all(map(shutil.which, TOOLS)), reason=f"{' or '.join(TOOLS)} is not installed"
)
@pytest.mark.parametrize("flags", [["-O2"], ["-O2", "-DEDGEAILITE_PORTABLE"]], ids=str)
@pytest.mark.parametrize("scales", ["power_of_two", "affine"])
def test_an_emulated_core_gives_the_values_of_pytorch(scales, flags, tmp_path):
    networks = {"i": (Images(), torch.randn(1, 3, 30, 30)), "s": (Series(), torch.randn(1, 32, 3))}
    for name, (network, x) in networks.items():
        wrapper, _ = calibrated(SCALES[scales], network, torch.randn(4, *x.shape[1:]))
        folder = tmp_path / name
        wrapper.export_c(x, folder, "net")
        instructions, wrong, flash = device_cost.on_cortex_m4(folder, flags)
        assert wrong == 0
        assert instructions > 1000
        assert flash > 2000
