"""Build the model: create, wrap for quantization, load weights, prepare its forward passes."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Adam, Optimizer, RMSprop

from edgeailite import xnn
from edgeailite.models import create_model
from edgeailite.quantization import PTCFxModule, QATFxModule, QuantModule
from edgeailite.quantization.methods.mixed_precision import BitWidths
from references.edgeailite.engine.distributed import Process
from references.edgeailite.engine.options import Options

logger = logging.getLogger("edgeailite.model")


@dataclasses.dataclass(frozen=True)
class Steps:
    """A model and the ways it is called."""

    module: nn.Module
    """Float model or quantization wrapper: what is switched, saved and exported."""
    train_forward: Callable[[Tensor], Tensor]
    """Images to logits with gradients, averaged over the processes."""
    eval_forward: Callable[[Tensor], Tensor]
    """Images to logits, this process alone."""
    device: torch.device
    """Where the model and its inputs live."""
    autocast: Callable[[], AbstractContextManager]
    """Makes the context that a forward pass runs in."""


def build_model(
    options: Options,
    num_classes: int,
    device: torch.device,
    check: Callable[[nn.Module], None] | None = None,
) -> nn.Module:
    """Create the model, wrap it as the phase asks, and load ``--pretrained``.

    Args:
        options: Of the run.
        num_classes: Number of classes.
        device: Where the model goes.
        check: Called with the float model; raises where it does not suit the task.

    Returns:
        The float model, or the wrapper with the model in ``.module``.

    Raises:
        ValueError: Unknown model, or weights that don't belong to it.
    """
    further = options.model_options
    try:
        model = create_model(options.model_name, num_classes=num_classes, **further)
    except TypeError as error:
        asked = ", ".join(f"--{name}" for name in further)
        raise ValueError(f"{asked}: model '{options.model_name}' has none ({error}).") from error
    if check is not None:
        check(model)
    if options.quantize:
        model = wrap(model, options)
    if options.pretrained is not None and options.resume is None:
        load_pretrained(float_or_inner(model, options), options)
    return model.to(device)


def float_or_inner(model: nn.Module, options: Options) -> nn.Module:
    """The module whose state dict goes into checkpoints: inside the wrapper, if there is one."""
    return model.module if options.quantize else model


def wrap(model: nn.Module, options: Options, bit_widths: BitWidths | None = None) -> nn.Module:
    """The quantization wrapper that the options ask for.

    Args:
        model: Float model.
        options: Of the run.
        bit_widths: Bits of single layers; None: those of ``--bit_widths``.
    """
    make = _wrap_pact2 if options.quantize_method == "pact2" else _wrap_fx
    wrapper = make(model, options, options.bit_widths if bit_widths is None else bit_widths)
    if not options.freeze_midway:
        wrapper.progress.schedule = wrapper.progress.schedule.without_freezing()
    return wrapper


def _wrap_pact2(model: nn.Module, options: Options, bit_widths: BitWidths | None) -> QuantModule:
    arguments: dict[str, Any] = {
        "bitwidth_weights": options.bitwidth_weights,
        "bitwidth_activations": options.bitwidth_activations,
        "per_channel_q": {"False": False, "True": True, "all": "all"}[options.per_channel_q],
        "constrain_bias": options.constrain_bias,
        "bit_widths": bit_widths,
    }
    if options.bias_calibration is not None:
        arguments["bias_calibration"] = options.bias_calibration
    dummy_input = example_input(options)
    if options.phase == "training":
        arguments |= {"total_epochs": options.epochs, "methods": options.methods}
        return xnn.quantize.QuantTrainModule(model, dummy_input=dummy_input, **arguments)
    if options.phase == "calibration":
        return xnn.quantize.QuantCalibrateModule(model, dummy_input=dummy_input, **arguments)
    return xnn.quantize.QuantTestModule(model, dummy_input=dummy_input, **arguments)


def _wrap_fx(model: nn.Module, options: Options, bit_widths: BitWidths | None) -> QuantModule:
    """A qat_fx run calibrates as a ptc_fx run does; only its training differs."""
    arguments: dict[str, Any] = {
        "qconfig_type": options.qconfig_type,
        "example_inputs": example_input(options),
        "total_epochs": options.epochs,
        "bit_widths": bit_widths,
    }
    if options.bias_calibration is not None:
        arguments["bias_calibration_factor"] = None if options.bias_calibration else 0.0
    if options.phase == "training":
        return QATFxModule(model, methods=options.methods, **arguments)
    return PTCFxModule(model, **arguments).eval()


def example_input(options: Options, device: torch.device | None = None) -> Tensor:
    """Zeros of the model's input shape, (1, 3, H, W)."""
    return torch.zeros(1, len(options.image_mean), *options.input_size, device=device)


def load_pretrained(model: nn.Module, options: Options) -> None:
    """Load ``--pretrained`` and log what was loaded.

    Args:
        model: Float model, or the inside of a wrapper.
        options: Of the run.

    Raises:
        ValueError: The weights are another model's, or not complete where nothing trains the rest.
    """
    assert options.pretrained is not None
    try:
        report = xnn.utils.load_weights(model, options.pretrained, verbose=False)
    except ValueError as error:
        raise ValueError(
            f"--pretrained {options.pretrained} does not give weights for --model_name "
            f"{options.model_name}. {error}"
        ) from error
    logger.info("%s", report)
    lacking = len(report.missing) + len(report.other_shape)
    if lacking > len(report.loaded):
        raise ValueError(
            f"--pretrained {options.pretrained} looks like the checkpoint of another model: only "
            f"{len(report.loaded)} tensors fit '{options.model_name}', {lacking} do not. "
            f"Check --model_name{_and(options.model_options)}.\n{report}"
        )
    if lacking and options.phase != "training":
        raise ValueError(
            f"--pretrained {options.pretrained} leaves {lacking} tensors of "
            f"'{options.model_name}' at random values, and phase {options.phase} does not train "
            f"them. Use a checkpoint for the data set's classes.\n{report}"
        )


def _and(names: Iterable[str]) -> str:
    return "".join(f" and --{name}" for name in names)


def prepare_steps(model: nn.Module, options: Options, process: Process) -> Steps:
    """Compile and distribute the forward passes, as the options ask.

    Validation and calibration call the module itself: with DistributedDataParallel around it, they
    would wait for processes that have fewer images.
    """
    forward = torch.compile(model) if options.compile else model
    train_forward = forward
    if process.world_size > 1 and options.phase == "training":
        devices = [process.device.index] if process.device.type == "cuda" else None
        train_forward = DistributedDataParallel(forward, device_ids=devices)
    kind = process.device.type
    dtype = torch.float16 if kind == "cuda" else torch.bfloat16

    def autocast() -> AbstractContextManager:
        return torch.autocast(kind, dtype=dtype, enabled=options.enable_fp16)

    return Steps(model, train_forward, forward, process.device, autocast)


def make_optimizer(model: nn.Module, options: Options) -> Optimizer:
    """The optimizer of ``--optimizer``, over all parameters that take gradients."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    common = {"lr": options.lr, "weight_decay": options.weight_decay}
    if options.optimizer == "adam":
        return Adam(parameters, **common)
    if options.optimizer == "rmsprop":
        return RMSprop(parameters, momentum=0.9, **common)
    nesterov = options.optimizer == "sgd_nesterov"
    return SGD(parameters, momentum=0.9, nesterov=nesterov, **common)
