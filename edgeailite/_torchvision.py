"""Make ``import torchvision`` work beside a torch that its compiled operators do not fit.

The torchvision wheel of the package index is built for CUDA. Beside a CPU-only torch its shared
library does not load, so the operators ``nms`` and ``qnms`` are never declared, and
``import torchvision`` fails where it attaches shape functions to them: ``operator torchvision::nms
does not exist``. Everything that this project uses of torchvision is plain Python, and works once
the two operators are declared. Calling them still raises torchvision's own explanation.
"""

import importlib.machinery
import importlib.util
import sys

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = ("nms", "qnms")


def define_missing_operators() -> bool:
    """Declare the operators that ``import torchvision`` needs, where its library does not load.

    Does nothing where torchvision is absent, already imported, or complete. Safe to call twice.

    Returns:
        True if operators were declared.
    """
    if "torchvision" in sys.modules or _compiled_operators_load():
        return False
    missing = [name for name in _OPERATORS if not hasattr(torch.ops.torchvision, name)]
    for name in missing:
        torch.library.define(f"torchvision::{name}", _SCHEMA)
    return bool(missing)


def _compiled_operators_load() -> bool:
    """Load torchvision's operator library as torchvision does; False where that is impossible."""
    package = importlib.util.find_spec("torchvision")
    if package is None or not package.submodule_search_locations:
        return True  # No torchvision: nothing to repair.
    loader = (
        importlib.machinery.ExtensionFileLoader,
        importlib.machinery.EXTENSION_SUFFIXES,
    )
    finder = importlib.machinery.FileFinder(package.submodule_search_locations[0], loader)
    library = finder.find_spec("_C")
    if library is None or library.origin is None:
        return False
    try:
        torch.ops.load_library(library.origin)
    except (ImportError, OSError):
        return False
    return True
