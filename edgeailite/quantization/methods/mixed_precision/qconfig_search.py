"""The search for bits by a wrapper's ``qconfig_type``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from edgeailite.quantization.methods.mixed_precision.metrics import METRICS
from edgeailite.quantization.methods.mixed_precision.search import MakeWrapper, search_bit_widths

if TYPE_CHECKING:
    from edgeailite.quantization.arithmetic.spec import QuantSpec

TOLERANCES = {"classification": 1.0, "regression": 0.02}
_LOADER_KEYS = (
    "inputs",
    "targets",
    "criterion",
    "calibration_dataloader",
    "eval_dataloader",
    "example_inputs",
)
_GOAL_KEYS = (
    "auto_quantization",
    "task_type",
    "float_metric",
    "max_bytes",
    "autoquant_tolerance_classification",
    "autoquant_tolerance_regression",
)


def apply_mixed_precision(
    qconfig_dict: Mapping[str, Any], bits: Mapping[int, Sequence[str]]
) -> dict[str, Any]:
    """Copy a ``qconfig_type`` dict and give its weights these bits.

    Args:
        qconfig_dict: Not changed.
        bits: ``{bits: [module names]}``; 32 leaves in float.
    """
    names = {int(b): list(paths) for b, paths in bits.items()}
    weight = {**(qconfig_dict.get("weight") or {}), "mixed_precision": names}
    return {**qconfig_dict, "weight": weight}


def without_search(qconfig_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a ``qconfig_type`` dict without the keys of the search, loaders above all."""
    dropped = (*_LOADER_KEYS, *_GOAL_KEYS)
    return {key: value for key, value in qconfig_dict.items() if key not in dropped}


def search_as_told(
    model: nn.Module,
    qconfig_dict: Mapping[str, Any],
    make_wrapper: MakeWrapper,
    weight_spec: Callable[[QuantSpec, int], QuantSpec],
    bit_widths: Sequence[int],
) -> dict[str, Any]:
    """Run the search that a ``qconfig_type`` dict asks for, and print its table.

    Args:
        model: Float model; not changed.
        qconfig_dict: ``calibration_dataloader`` (or ``inputs``), and as goal ``max_bytes``, or
            ``eval_dataloader`` with batches ``(input, target)`` and ``task_type``
            (``'classification'``: accuracy in percent; ``'regression'``: R^2); the metric may fall
            below ``float_metric`` (measured if it is not given) by
            ``autoquant_tolerance_classification`` (1 point) or ``autoquant_tolerance_regression``
            (0.02). Not changed.
        make_wrapper: See :func:`search_bit_widths`.
        weight_spec: See :func:`search_bit_widths`.
        bit_widths: Bit widths to choose from.

    Returns:
        A new dict without loaders, with ``weight.mixed_precision``.

    Raises:
        ValueError: Data or goal is missing.
    """
    data = qconfig_dict.get("calibration_dataloader")
    if data is None and qconfig_dict.get("inputs") is not None:
        data = [qconfig_dict["inputs"]]
    if data is None:
        raise ValueError(
            "auto_quantization needs calibration_dataloader (or inputs): batches to measure on."
        )
    goal = _goal(model, qconfig_dict)
    found = search_bit_widths(
        model, make_wrapper, data, weight_spec=weight_spec, bit_widths=bit_widths, **goal
    )
    print(found)  # noqa: T201
    return apply_mixed_precision(without_search(qconfig_dict), found.bits)


def _goal(model: nn.Module, qconfig_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of :func:`search_bit_widths` for the goal of a dict."""
    if qconfig_dict.get("max_bytes") is not None:
        return {"max_bytes": int(qconfig_dict["max_bytes"])}
    loader = qconfig_dict.get("eval_dataloader")
    if loader is None:
        raise ValueError(
            "auto_quantization needs a goal: max_bytes, or eval_dataloader (and task_type)."
        )
    task = "regression" if "regression" in str(qconfig_dict.get("task_type")) else "classification"
    metric = METRICS[task]
    reference = qconfig_dict.get("float_metric")
    if reference is None:
        reference = metric(model, loader)
    elif task == "classification" and reference <= 1.0:
        reference = 100.0 * reference  # a share
    tolerance = qconfig_dict.get(f"autoquant_tolerance_{task}")
    allowed = TOLERANCES[task] if tolerance is None else float(tolerance)
    return {"evaluate": lambda w: metric(w, loader), "min_metric": reference - allowed}
