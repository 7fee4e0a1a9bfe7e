"""Networks that ``fuzz_exactness.py`` found a fault with, as small as they still failed.

Each was printed by it. The key says what was wrong; all of them are equal in every value now, which
tests/quantization/test_fuzz.py checks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fuzz_cases import Case
from fuzz_networks import Network


def keep(inputs: Mapping[str, tuple[int, ...]], source: str, **options: Any) -> Case:
    """A case from its text."""
    return Case(Network.read(inputs, source), **options)


SEEDS: dict[str, Case] = {
    "adaptive maxima with windows of several sizes had no form in ONNX": keep(
        {"x0": (3, 7, 9)},
        """
class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.m0 = nn.Conv2d(3, 6, 1)
        self.m1 = nn.AdaptiveMaxPool1d(4)
    def forward(self, x0):
        v0 = self.m0(x0)
        v1 = self.m1(v0.flatten(2))
        v2 = F.adaptive_max_pool2d(v0, (None, 2))
        v3 = F.adaptive_max_pool2d(v0, 2, return_indices=True)[0]
        return v1, v2, v3
""",
        wrapper="QuantCalibrateModule(model, x, bitwidth_activations=6)",
        format="INT_MODEL",
    ),
    "a batch norm over the tokens behind a linear layer was folded into its features": keep(
        {"x0": (8, 4)},
        """
class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.m0 = nn.Linear(4, 8)
        self.m1 = nn.BatchNorm1d(8)
    def forward(self, x0):
        v0 = self.m0(x0)
        v1 = self.m1(v0)
        return v1
""",
        wrapper="PTCFxModule(model, qconfig_type='WC8SYMP2_AT8SYMP2', example_inputs=x)",
    ),
    "activations rounded half away from zero had no form in ONNX": keep(
        {"x0": (3, 6, 6)},
        """
class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.m0 = nn.Conv2d(3, 4, 1)
    def forward(self, x0):
        v0 = self.m0(x0)
        return v0
""",
        wrapper="PTCFxModule(model, qconfig_type=QConfig(QuantSpec(8, signed=True), "
        "QuantSpec(8, rounding='half_away')))",
        data="ties",
    ),
    "functions of grids with different sizes could not be proven in one file": keep(
        {"x0": (3, 6, 6)},
        """
class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.m0 = nn.Conv2d(3, 4, 1)
    def forward(self, x0):
        v0 = torch.sigmoid(x0)
        v1 = self.m0(v0)
        v2 = F.gelu(v1)
        return v2
""",
        wrapper="PTCFxModule(model, qconfig_type='WC4_AT4')",
    ),
    "a window of a max pool that begins behind the image was counted in the file": keep(
        {"x0": (2, 7, 10)},
        """
class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.m0 = nn.MaxPool2d(3, 2, (0, 1), ceil_mode=True)
        self.m1 = nn.MaxPool1d(2, 3, 1, ceil_mode=True)
    def forward(self, x0):
        v0 = F.max_pool2d(x0, 2, 2, 1, 1, ceil_mode=True)
        v1 = self.m0(x0)
        v2 = self.m1(x0.flatten(2))
        return v0, v1, v2
""",
        wrapper="PTCFxModule(model, qconfig_type='WC4M4_AT8')",
        format="INT_MODEL",
        data="ties",
    ),
    "ONNX Runtime could not load a file of opset 21 with a list as an index": keep(
        {"x0": (2, 12, 10)},
        """
class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.m0 = nn.Conv2d(2, 5, (1, 2), 1, (0, 1), 2)
    def forward(self, x0):
        v0 = self.m0(x0)
        v1 = v0[:, [0, -1, 0]]
        v2 = v0[..., [1, 0], 1:]
        return v1, v2
""",
        wrapper="PTCFxModule(model, qconfig_type='WT8SYMP2_AT8SYMP2')",
        opset=21,
    ),
    "ONNX Runtime could not load a file of opset 21 with a roll": keep(
        {"x0": (16, 12)},
        """
class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.m0 = nn.Linear(12, 3, True)
    def forward(self, x0):
        v0 = self.m0(x0)
        v1 = x0.roll(1, 1)
        v2 = torch.roll(x0, (1, -2), (1, 2))
        return v0, x0, v1, v2
""",
        wrapper="QuantCalibrateModule(model, x, bitwidth_activations=4, per_channel_q='all')",
        opset=21,
    ),
    "ONNX Runtime made one rounding of two, free scales": keep(
        {"x0": (3, 8, 8)},
        """
class Network(nn.Module):
    def __init__(self):
        super().__init__()
    def forward(self, x0):
        v0 = F.relu(x0)
        return v0
""",
        wrapper="QATFxModule(model, qconfig_type='WC4_AT8', total_epochs=4)",
        training_steps=1,
        seed=36072159,
    ),
    "ONNX Runtime made one rounding of two, power-of-two scales": keep(
        {"x0": (2, 8, 8)},
        """
class Network(nn.Module):
    def __init__(self):
        super().__init__()
    def forward(self, x0):
        v0 = x0.clamp(-0.5, 0.5)
        v1 = v0.clamp(-0.25, 0.25)
        return v1
""",
        wrapper="PTCFxModule(model, qconfig_type='WT8SYMP2_AT8SYMP2')",
    ),
    "ONNX Runtime multiplied a factor into the ones of a sum": keep(
        {"x0": (2, 12, 11)},
        """
class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.m0 = nn.Conv2d(2, 6, (1, 2), 3, (1, 1), 1, 1, True, padding_mode='reflect')
        self.m3 = nn.AvgPool2d(3, None, 1, False, False, 5)
    def forward(self, x0):
        v0 = self.m0(x0)
        v6 = self.m3(v0)
        return v6
""",
        wrapper="PTCFxModule(model, qconfig_type='WC8_AT8')",
        seed=670700178,
    ),
}  # fmt: skip
