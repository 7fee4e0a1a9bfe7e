"""Quantization-aware training in a plain PyTorch loop: copy this file and put your model in.

Float weights in, integer ONNX out; the steps that quantization adds are numbered.

    cd references/edgeailite/scripts
    python quantize_classification_example.py --data_path DIGITS --pretrained FLOAT.pth
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from edgeailite import xnn
from edgeailite.datasets import create_dataset
from edgeailite.files.atomic import write_atomically
from edgeailite.models import create_model
from edgeailite.transforms import classification_eval_transform, classification_train_transform

VIEW = {
    "image_mean": (123.675, 116.28, 103.53),
    "image_scale": (0.017125, 0.017507, 0.017429),
}


def parse_arguments() -> argparse.Namespace:
    """Options of this example; train_classification_main.py has the full set."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data_path", type=Path, required=True)
    parser.add_argument("--pretrained", required=True, help="float checkpoint: path or URL")
    parser.add_argument("--model_name", default="mobilenetv2_tv_x1")
    parser.add_argument("--strides", type=int, nargs=5, default=None)
    parser.add_argument("--img_size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--save_path", type=Path, default=Path("data/checkpoints/example"))
    return parser.parse_args()


def make_loaders(arguments: argparse.Namespace) -> tuple[DataLoader, DataLoader, int]:
    """Loaders of both splits, and the number of classes."""
    size = {"img_resize": (arguments.img_size,), "img_crop": (arguments.img_size,)}
    augment = classification_train_transform(**size, **VIEW, rand_scale=(0.7, 1.0), rand_flip=False)
    plain = classification_eval_transform(**size, **VIEW)
    name, root = "image_folder_classification", arguments.data_path
    train_set = create_dataset(name, root, "train", augment)
    val_set = create_dataset(name, root, "val", plain)
    train = DataLoader(train_set, arguments.batch_size, shuffle=True, drop_last=True)
    return train, DataLoader(val_set, arguments.batch_size), len(train_set.classes)


def train_one_epoch(
    model: nn.Module, loader: DataLoader, optimizer: torch.optim.Optimizer, *, frozen: bool
) -> None:
    """An ordinary training epoch."""
    model.train()
    if frozen:
        # 2. The last epochs train against fixed statistics and ranges. QuantTrainModule freezes
        #    on its own schedule too; call these to choose your own moment.
        xnn.utils.freeze_bn(model)
        xnn.layers.freeze_quant_range(model)
    for images, targets in tqdm(loader, leave=False, disable=None):
        loss = nn.functional.cross_entropy(model(images), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, loader: DataLoader) -> float:
    """Top-1 accuracy in percent."""
    model.eval()
    correct = sum(int((model(images).argmax(1) == targets).sum()) for images, targets in loader)
    return 100.0 * correct / len(loader.dataset)


def main() -> None:
    """Load, wrap, train, validate, save, export."""
    arguments = parse_arguments()
    train, val, num_classes = make_loaders(arguments)
    options = {} if arguments.strides is None else {"strides": arguments.strides}
    model = create_model(arguments.model_name, num_classes=num_classes, **options)
    xnn.utils.load_weights(model, arguments.pretrained)
    print(f"float: {accuracy(model, val):.2f} %")

    # 1. Wrap the trained float model. From here on the model itself is model.module.
    dummy_input = torch.zeros(1, 3, arguments.img_size, arguments.img_size)
    model = xnn.quantize.QuantTrainModule(
        model, dummy_input=dummy_input, total_epochs=arguments.epochs
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=arguments.lr, momentum=0.9)
    scheduler = xnn.optim.make_lr_scheduler(optimizer, "cosine", arguments.epochs)
    for epoch in range(arguments.epochs):
        train_one_epoch(model, train, optimizer, frozen=epoch >= 2 * arguments.epochs / 3)
        scheduler.step()
        print(f"epoch {epoch + 1}/{arguments.epochs}: quantized {accuracy(model, val):.2f} %")

    # 3. Save what is inside the wrapper, and export integers.
    with write_atomically(arguments.save_path / "model.pth") as temporary:
        torch.save(model.module.state_dict(), temporary)
    model.export(dummy_input, arguments.save_path / "model.onnx")
    print(f"wrote {arguments.save_path}/model.pth and {arguments.save_path}/model.onnx")


if __name__ == "__main__":
    main()
