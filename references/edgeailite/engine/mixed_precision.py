"""Choose the bits of single layers for a budget of size, of MAC-bits or of accuracy."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from edgeailite.quantization.methods import equalize, methods_named
from edgeailite.quantization.methods.mixed_precision import (
    MixedPrecision,
    choose_bit_widths,
    layer_sensitivity,
    search_bit_widths,
)
from references.edgeailite.engine.data import Data, set_epoch
from references.edgeailite.engine.deploy import first_images
from references.edgeailite.engine.distributed import Process
from references.edgeailite.engine.loops import Task
from references.edgeailite.engine.model import build_model, wrap
from references.edgeailite.engine.options import BUDGETS, Options

BIT_WIDTHS_FILE = "bit_widths.json"
_REFERENCE_BITS = 8

Kind = TypeVar("Kind", bound=Options)

logger = logging.getLogger("edgeailite.mixed_precision")


def with_chosen_bits(
    options: Kind,
    data: Data,
    task: Task,
    process: Process,
    folder: Path,
    check: Callable[[nn.Module], None] | None = None,
) -> Kind:
    """Choose the bits if the options have a budget, and write ``bit_widths.json``.

    Args:
        options: Of the run.
        data: Sensitivity is measured on training images, accuracy on validation images.
        task: How accuracy is measured.
        process: This process, the only one.
        folder: Run folder.
        check: As of `build_model`.

    Returns:
        The options with ``--bit_widths`` instead of the budget.

    Raises:
        ValueError: The budget is too small.
    """
    if not options.budgets:
        return options
    free = dataclasses.replace(options, **dict.fromkeys(BUDGETS))
    in_float = dataclasses.replace(
        free, phase="validation", quantize=False, quantize_method="pact2", qconfig_type=None,
        ptq=None, bias_calibration=None,
    )  # fmt: skip
    model = build_model(in_float, len(data.classes), process.device, check).eval()
    set_epoch(data.train, 0)
    images = [(batch.to(process.device),) for batch in first_images(i for i, _ in data.train)]
    found = _find(free, model, images, task, process, options.budgets)
    logger.info("bits of the layers, for %s\n%s", options.budgets, found)
    path = found.save(folder / BIT_WIDTHS_FILE)
    return dataclasses.replace(free, bit_widths=path)


def _find(
    options: Options,
    model: nn.Module,
    images: list[tuple[Tensor, ...]],
    task: Task,
    process: Process,
    budgets: dict[str, float],
) -> MixedPrecision:
    def make_wrapper(float_model: nn.Module, found: MixedPrecision) -> nn.Module:
        return wrap(float_model, options, found).to(process.device).eval()

    if "accuracy_budget" not in budgets:
        wrapper = make_wrapper(copy.deepcopy(model), MixedPrecision({}))
        if options.ptq is not None and "equalization" in methods_named(options.ptq):
            # It moves errors between layers: they are measured behind it.
            equalize(wrapper.module, images)
        layers = layer_sensitivity(wrapper.module, images)
        allowed = {
            "max_bytes": ("size_budget", sum(s.num_bytes(_REFERENCE_BITS) for s in layers)),
            "max_mac_bits": ("mac_budget", sum(s.mac_bits(_REFERENCE_BITS) for s in layers)),
        }
        limits = {
            name: int(budgets[budget] * whole)
            for name, (budget, whole) in allowed.items()
            if budget in budgets
        }
        return MixedPrecision(choose_bit_widths(layers, **limits), tuple(layers))

    def metric(forward: nn.Module) -> float:
        return task.validate(forward.eval(), process.device, nullcontext)[task.best]

    lowest = metric(model) - budgets["accuracy_budget"]
    return search_bit_widths(model, make_wrapper, images, evaluate=metric, min_metric=lowest)
