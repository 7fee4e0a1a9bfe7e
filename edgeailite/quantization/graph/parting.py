"""The first place where a captured graph and its model part, for a message."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

_HERE = Path(__file__).parent
_TORCH = Path(torch.__file__).parent


class Recorded(TorchFunctionMode):
    """Keeps of each call of torch's functions its name, its line, and its result."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, str, int]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.numel() and result.layout is torch.strided:
            name = resolve_name(func) or getattr(func, "__name__", str(func))
            value = result.detach().double().contiguous().cpu().numpy().tobytes()
            self.calls.append((name, _place(), hash(value)))
        return result

    @property
    def values(self) -> set[int]:
        """Fingerprints of all results."""
        return {value for _, _, value in self.calls}

    def first_without(self, values: set[int]) -> str:
        """Name the first call whose result is not among `values`, as a sentence; empty: none."""
        for name, place, value in self.calls:
            if value not in values:
                return f" They part at {name}{f', {place}' if place else ''}."
        return ""


def _place() -> str:
    """Line of the user's, or of a library's, code that is running."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if not path.is_relative_to(_HERE) and not path.is_relative_to(_TORCH):
            return f"{path}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
