"""What several test files of the engine share: random nets, a little training, ONNX Runtime."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from edgeailite.quantization.wrappers import QuantTrainModule

OPTIMIZATIONS = {
    "off": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "on": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def randomize_batch_norms(model: nn.Module) -> nn.Module:
    """Statistics and gains as of a trained net: some gains negative, one of each layer zero."""
    for module in nn.Module.modules(model):  # a model's own attribute may have the name
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.track_running_stats:
                nn.init.uniform_(module.running_mean, -0.5, 0.5)
                nn.init.uniform_(module.running_var, 0.3, 2.0)
            if module.affine:
                nn.init.uniform_(module.weight, -1.0, 1.5)
                nn.init.uniform_(module.bias, -0.3, 0.3)
                with torch.no_grad():
                    module.weight[0] = 0.0
                    module.weight[-1] = -module.weight[-1].abs()
    return model


def batch(shapes: list[tuple[int, ...]], size: int) -> tuple[Tensor, ...]:
    return tuple(torch.randn(size, *shape) for shape in shapes)


def outputs(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def train_a_little(wrapper: nn.Module, shapes: list[tuple[int, ...]], epochs: int = 2) -> nn.Module:
    """Two steps an epoch towards small outputs; ends in evaluation mode."""
    parameters = [p for p in wrapper.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-3) if parameters else None
    for _ in range(epochs):
        wrapper.train()
        for _ in range(2):
            loss = sum(y.square().mean() for y in outputs(wrapper(*batch(shapes, 4))))
            if optimizer is not None:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return wrapper.eval()


def trained(model: nn.Module, shapes: list[tuple[int, ...]], **options: object) -> QuantTrainModule:
    """A wrapper around `model`, trained a little: batch norm learning, then frozen."""
    randomize_batch_norms(model)
    wrapper = QuantTrainModule(model, batch(shapes, 1), total_epochs=4, **options)
    return train_a_little(wrapper, shapes)


def run_onnx(
    path: Path, inputs: tuple[Tensor, ...], optimization: str = "on"
) -> tuple[Tensor, ...]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = OPTIMIZATIONS[optimization]
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
    return tuple(torch.from_numpy(np.asarray(y)) for y in session.run(None, feeds))


def quiet_onnx_export(model: nn.Module, inputs: tuple[Tensor, ...], path: Path, **options) -> None:
    """``torch.onnx.export`` as users call it; torch's own deprecation warnings are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, inputs, str(path), verbose=False, opset_version=18, **options)
