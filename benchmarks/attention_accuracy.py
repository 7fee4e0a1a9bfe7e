"""Accuracy of attention and layer norm with 8 bits: a small ViT and a ConvNeXt-like network.

Both are trained in float on 5,000 images of CIFAR-10, from scratch, so their accuracy is modest.
Then they are calibrated, and trained on with quantization (distilled from the float network), and
evaluated on all 2,000 test images after each epoch. The last epoch counts; no epoch is chosen.
Evaluation computes the integers of the device. The ViT is written in two ways, with
``scaled_dot_product_attention`` and as products around a softmax, and both load the same weights.
Beside the quantized training stands the same training in float. Values that differ are counted on
500 of the images: evaluation against integer graph, that against ONNX Runtime without
optimizations, and with them.

    python benchmarks/attention_accuracy.py --data FOLDER --weights weights

``FOLDER/cifar10_small`` holds ``train/CLASS/*.png`` and ``val/CLASS/*.png``. Float weights are kept
in the folder ``--weights`` and loaded from there by the next run.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from low_bit_qat import BATCH_SIZE, batches
from ptq_accuracy import cifar10_images, environment, logits, num_different, percent_correct
from torch import Tensor, nn

from edgeailite.files.atomic import write_atomically
from edgeailite.quantization import PTCFxModule, QATFxModule, TrainingMethods
from edgeailite.quantization.report import build_report

PRESETS = {
    "WT8SYMP2_AT8SYMP2": "power of two, per tensor",
    "WC8SYMP2_AT8SYMP2": "power of two, per channel",
    "WC8_AT8": "free scales, per channel",
}
WAYS: dict[str, str | None] = {"batch by batch": None, "fast": "fast"}
CALIBRATION = 500
COMPARED = 2  # batches of 250
METHODS = TrainingMethods(distillation=0.5)


class Attention(nn.Module):
    """Self-attention of several heads, with one call or written out."""

    def __init__(self, channels: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.scale, self.fused = heads, (channels // heads) ** -0.5, fused
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, tokens, channels) to the same."""
        n, tokens, channels = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = torch.softmax(q @ k.transpose(-2, -1) * self.scale, -1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(n, tokens, channels))


class TransformerBlock(nn.Module):
    """Attention and a perceptron, each behind a layer norm and beside a residual connection."""

    def __init__(self, channels: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attention = Attention(channels, heads, fused)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, tokens, channels) to the same."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A vision transformer: patches of 4x4, a class token, a learned position for each token.

    Reference: Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929.
    """

    def __init__(self, channels: int = 64, depth: int = 4, heads: int = 4, fused: bool = True):
        super().__init__()
        self.patches = nn.Conv2d(3, channels, 4, 4)
        self.class_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.positions = nn.Parameter(torch.randn(1, 65, channels) * 0.02)
        self.blocks = nn.Sequential(
            *(TransformerBlock(channels, heads, fused) for _ in range(depth))
        )
        self.norm, self.head = nn.LayerNorm(channels), nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 32, 32) to (N, 10)."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, layer norm, a perceptron on each pixel, layer scale, residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, 1, 3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.expand, self.reduce = (
            nn.Linear(channels, 4 * channels),
            nn.Linear(4 * channels, channels),
        )
        self.layer_scale = nn.Parameter(torch.full((channels,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to the same."""
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.layer_scale * self.reduce(F.gelu(self.expand(y)))
        return x + y.permute(0, 3, 1, 2)


class ChannelNorm(nn.LayerNorm):
    """Layer norm of the channels of (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Two stages of ConvNeXt blocks, at 16x16 and 8x8 pixels.

    Reference: Liu et al. 2022, https://arxiv.org/abs/2201.03545.
    """

    def __init__(self, widths: tuple[int, int] = (32, 64), depth: int = 2) -> None:
        super().__init__()
        first, second = widths
        self.features = nn.Sequential(
            nn.Conv2d(3, first, 2, 2),
            ChannelNorm(first),
            *(ConvNeXtBlock(first) for _ in range(depth)),
            ChannelNorm(first),
            nn.Conv2d(first, second, 2, 2),
            *(ConvNeXtBlock(second) for _ in range(depth)),
        )
        self.norm, self.head = nn.LayerNorm(second), nn.Linear(second, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 32, 32) to (N, 10)."""
        return self.head(self.norm(self.features(x).mean((2, 3))))


@dataclass
class Data:
    """Images and labels: to train with, and to evaluate on."""

    images: Tensor
    labels: Tensor
    val: list[Tensor]
    val_labels: Tensor

    @property
    def calibration(self) -> list[Tensor]:
        """Some of the training images, in batches."""
        return list(self.images[:: len(self.images) // CALIBRATION].split(50))

    def accuracy(self, model: nn.Module) -> float:
        """Top-1 in percent on all images to evaluate on."""
        return percent_correct(logits(model.eval(), self.val), self.val_labels)


def read_data(folder: Path) -> Data:
    """All images of ``cifar10_small``."""
    images, labels = cifar10_images(folder / "train")
    val, val_labels = cifar10_images(folder / "val")
    return Data(images, labels, list(val.split(250)), val_labels)


def train(model: nn.Module, data: Data, epochs: int, lr: float, warmup: float) -> list[float]:
    """AdamW with a learning rate that grows, then falls as a cosine.

    Args:
        model: Float network, or a wrapper.
        data: To train with and to evaluate on.
        epochs: Passes over the training images.
        lr: Largest learning rate.
        warmup: Part of the training in which it grows.

    Returns:
        Top-1 in percent after each epoch.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.05)
    steps = epochs * (len(data.images) // BATCH_SIZE)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=warmup)
    curve = []
    for _ in range(epochs):
        with redirect_stdout(sys.stderr):  # what freezes, and when: not part of the table
            model.train()
        for x, y in batches(data.images, data.labels):
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        curve.append(data.accuracy(model))
    return curve


def float_network(name: str, seed: int, data: Data, args: argparse.Namespace) -> nn.Module:
    """The trained float network, from the folder of weights if it is there."""
    torch.manual_seed(seed)
    model = NETWORKS[name]()
    path = args.weights / f"{WEIGHTS[name]}_{seed}_{args.float_epochs}.pth"
    if not path.is_file():
        start = time.perf_counter()
        curve = train(model, data, args.float_epochs, args.float_lr, 0.2)
        print(
            f"{path.stem}: {' '.join(f'{a:.1f}' for a in curve)}, "
            f"{time.perf_counter() - start:.0f} s",
            file=sys.stderr,
        )
        args.weights.mkdir(parents=True, exist_ok=True)
        with write_atomically(path) as temporary:
            torch.save(model.state_dict(), temporary)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


NETWORKS = {
    "ViT": ViT,
    "ViT, written out": lambda: ViT(fused=False),
    "ConvNeXt": ConvNeXt,
}
WEIGHTS = {"ViT": "vit", "ViT, written out": "vit", "ConvNeXt": "convnext"}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with cifar10_small")
    parser.add_argument(
        "--weights", type=Path, default=Path("weights"), help="of the float networks"
    )
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--presets", nargs="*", default=list(PRESETS), choices=PRESETS)
    parser.add_argument("--trained", nargs="*", default=["WT8SYMP2_AT8SYMP2"], choices=PRESETS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--float_epochs", type=int, default=30)
    parser.add_argument("--float_lr", type=float, default=2e-3)
    parser.add_argument("--epochs", type=int, default=4, help="of the quantized training")
    parser.add_argument("--lr", type=float, default=1e-4)
    return parser.parse_args()


@dataclass
class Row:
    """One line of the table."""

    network: str
    seed: int
    reference: Tensor  # logits of the float network

    def print(
        self, scheme: str, way: str, model: nn.Module, data: Data, curve: list[float], rest: str
    ) -> None:
        """Evaluate the model on all images; `curve` is its training's."""
        out = logits(model.eval(), data.val)
        change = percent_correct(out, data.val_labels) - percent_correct(
            self.reference, data.val_labels
        )
        agreement = percent_correct(out, self.reference.argmax(1))
        print(
            f"| {self.network} | {self.seed} | {scheme} | {way} "
            f"| {' '.join(f'{a:.2f}' for a in curve)} "
            f"| {percent_correct(out, data.val_labels):.2f} | {change:+.2f} | {agreement:.2f} "
            f"| {rest} |",
            flush=True,
        )


def values(wrapper: QATFxModule, data: Data) -> str:
    """Values that differ, and operations in float."""
    floats = len(build_report(wrapper).floats)
    return f"{num_different(wrapper, data.val[:COMPARED])} | {floats}"


def measure_network(name: str, seed: int, data: Data, args: argparse.Namespace) -> None:
    """Print the rows of one network: float, calibrated, trained."""
    model = float_network(name, seed, data, args)
    row = Row(name, seed, logits(model, data.val))
    row.print("float", "", model, data, [], " | ")
    for preset in args.presets:
        for way, quality in WAYS.items():
            wrapper = PTCFxModule(copy.deepcopy(model), qconfig_type=preset, verbose=False)
            with redirect_stdout(sys.stderr):
                wrapper.calibrate(data.calibration, quality=quality)
            row.print(preset, f"calibrated, {way}", wrapper, data, [], values(wrapper, data))
    if not args.trained:
        return
    torch.manual_seed(seed)
    control = copy.deepcopy(model)
    curve = train(control, data, args.epochs, args.lr, 0.1)
    row.print("float", "trained on", control, data, curve, " | ")
    for preset in args.trained:
        torch.manual_seed(seed)
        wrapper = QATFxModule(
            copy.deepcopy(model), qconfig_type=preset, total_epochs=args.epochs, methods=METHODS,
            verbose=False,
        )  # fmt: skip
        curve = train(wrapper, data, args.epochs, args.lr, 0.1)
        row.print(preset, "trained", wrapper, data, curve, values(wrapper, data))


def measure(args: argparse.Namespace) -> None:
    """Print the table."""
    data = read_data(args.data / "cifar10_small")
    print(
        f"{environment()}\n\n"
        f"{len(data.images)} training and {len(data.val_labels)} test images. Float: "
        f"{args.float_epochs} epochs from scratch, AdamW, learning rate {args.float_lr:g}. "
        f"Calibrated on {CALIBRATION} training images. Trained: {args.epochs} epochs with learning "
        f"rate {args.lr:g}, distillation {METHODS.distillation:g}; 'trained on' is the same "
        "training in float, of labels alone.\n\n"
        "| network | seed | scheme | quantized | top-1 % after each epoch | top-1 % | change "
        "| agreement with float % | values that differ | operations in float |\n"
        "|---|---|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    for name in args.networks:
        for seed in args.seeds:
            measure_network(name, seed, data, args)


def main() -> None:
    """Measure, where the images are."""
    args = parse_arguments()
    if args.data is None or not (args.data / "cifar10_small").is_dir():
        print(f"skipped: no cifar10_small under --data {args.data}; --help says what it needs")
        return
    measure(args)


if __name__ == "__main__":
    main()
