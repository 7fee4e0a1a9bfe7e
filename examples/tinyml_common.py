"""What the microcontroller examples share: options, training, the way to ONNX, the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import onnxruntime
import torch
from torch import Tensor, nn
from tqdm import tqdm

from edgeailite.quantization import (
    GenericTinyMLPTQFxModule,
    GenericTinyMLQATFxModule,
    TINPUTinyMLPTQFxModule,
    TINPUTinyMLQATFxModule,
)
from edgeailite.quantization.integer.memory import estimate_memory

WRAPPERS = {
    "tinpu_qat": TINPUTinyMLQATFxModule,
    "tinpu_ptq": TINPUTinyMLPTQFxModule,
    "generic_qat": GenericTinyMLQATFxModule,
    "generic_ptq": GenericTinyMLPTQFxModule,
}
Data = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Options:
    """Command line of an example.

    Attributes:
        wrapper: Target (TI's NPU, or any CPU with int8), and whether to train or only calibrate.
        weight_bits: Bits of the weights; biases and activations keep theirs.
        soft_quant: Whether weights begin soft (soft_sigmoid, dbq) or on their grid (default); None:
            soft at 2 bits.
        float_epochs: Epochs of the float training.
        epochs: Epochs of the quantized training, or passes of the calibration.
        batch_size: Examples per step.
        seed: Of the data, the weights and the order of the batches.
        output_dir: Folder of the ONNX file.
    """

    wrapper: Literal["tinpu_qat", "tinpu_ptq", "generic_qat", "generic_ptq"] = "tinpu_qat"
    weight_bits: Literal[8, 4, 2] = 8
    soft_quant: Literal["default", "soft_sigmoid", "dbq"] | None = None
    float_epochs: int = 20
    epochs: int = 10
    batch_size: int = 32
    seed: int = 0
    output_dir: Path = field(default_factory=lambda: Path("data/checkpoints/tinyml"))


@dataclass(frozen=True)
class Task:
    """What an example trains.

    Attributes:
        name: Of the ONNX file.
        training: Inputs and targets to learn from.
        validation: Inputs and targets it has not seen.
        loss: Of outputs and targets.
        metric: Of outputs and targets; higher is better.
        metric_name: What it is, with its unit.
        learning_rate: Of the float training; a fifth of it for the quantized one.
    """

    name: str
    training: Data
    validation: Data
    loss: Callable[[Tensor, Tensor], Tensor]
    metric: Callable[[Tensor, Tensor], float]
    metric_name: str
    learning_rate: float = 5e-3


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Percent of inputs whose largest output is the target's; outputs ``(N, C)``."""
    return 100 * float((outputs.argmax(1) == targets).float().mean())


def train(model: nn.Module, task: Task, epochs: int, rate: float, batch_size: int) -> None:
    """Train with Adam and a cosine schedule; ends in evaluation mode."""
    inputs, targets = task.training
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, weight_decay=1e-4)
    steps = epochs * -(-len(inputs) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in tqdm(range(epochs), "training", leave=False, disable=None):
        model.train()
        for batch in torch.randperm(len(inputs)).split(batch_size):
            loss = task.loss(model(inputs[batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def run_onnx(path: Path, inputs: Tensor) -> Tensor:
    """The outputs of a file in ONNX Runtime."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": inputs.numpy()})[0])


def quantize(model: nn.Module, task: Task, options: Options) -> Any:
    """Wrap the float model, and train or calibrate it."""
    weight: dict[str, Any] = {"bitwidth": options.weight_bits}
    if options.soft_quant is not None:
        weight["soft_quant"] = options.soft_quant
    wrapper = WRAPPERS[options.wrapper](
        model,
        qconfig_type={"weight": weight},
        example_inputs=task.training[0][:1],
        total_epochs=options.epochs,
    )
    if wrapper.trains:
        train(wrapper, task, options.epochs, task.learning_rate / 5, options.batch_size)
    else:
        wrapper.calibrate(task.training[0].split(options.batch_size), options.epochs)
    return wrapper


@torch.no_grad()
def deploy(wrapper: Any, task: Task, options: Options) -> dict[str, Tensor]:
    """Convert, export, run ONNX Runtime; the outputs of each, in real units."""
    inputs = task.validation[0]
    outputs = {"simulation": wrapper(inputs)}
    as_real = {"output_int": False} if options.wrapper.startswith("tinpu") else {}
    converted = wrapper.convert(**as_real)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    path = options.output_dir / f"{task.name}_{options.wrapper}_w{options.weight_bits}.onnx"
    converted.export(inputs[:1], path, input_names=["input"])
    outputs["integer graph"] = converted(inputs)
    outputs["ONNX Runtime"] = run_onnx(path, inputs)
    print(f"\n{path}\n\n{estimate_memory(converted, inputs[:1])}\n")
    return outputs


def run(model: nn.Module, task: Task, options: Options) -> dict[str, float]:
    """The example: float training, quantization, integers, ONNX, and a table of them.

    Returns:
        The metric of each, and ``differing`` values between integer graph, simulation and file.
    """
    torch.manual_seed(options.seed)
    train(model, task, options.float_epochs, task.learning_rate, options.batch_size)
    inputs, targets = task.validation
    with torch.no_grad():
        outputs = {"float": model(inputs)}
    outputs |= deploy(quantize(model, task, options), task, options)
    results = {name: task.metric(output, targets) for name, output in outputs.items()}
    print(f"{task.metric_name} on {len(inputs)} inputs, {options.weight_bits}-bit weights")
    for name, value in results.items():
        print(f"  {name:14} {value:7.2f}")
    integers = outputs["integer graph"]
    others = (outputs["simulation"], outputs["ONNX Runtime"])
    differing = sum(int((other != integers).sum()) for other in others)
    print(f"  {differing} of {2 * integers.numel()} values differ from the integer graph's")
    return {**results, "differing": differing}
