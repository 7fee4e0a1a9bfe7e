"""Read the state dict of a checkpoint file."""

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

__all__ = ["read_state_dict"]

# Where training scripts keep the model inside a larger checkpoint.
_MODEL_KEYS = ("state_dict", "model", "model_state")


def read_state_dict(source: Mapping[str, Any] | str | Path) -> "OrderedDict[str, Tensor]":
    """Return the tensors of a checkpoint, by parameter name.

    Args:
        source: A state dict, a mapping that holds one under ``state_dict``, ``model`` or
            ``model_state``, or the path of a file with either.

    Returns:
        A new dict with the checkpoint's tensors, without the prefix ``module.`` that data-parallel
        training puts in front of every name, and with the modules' state versions.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, or is no checkpoint; or no state dict is in it.
    """
    if isinstance(source, Mapping):
        return _find_state_dict(source, "the given mapping")
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint file {path}.")
    return _find_state_dict(_read(path), str(path))


def _read(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is not a checkpoint that can be read safely: it is no file of torch.save, or "
            f"it holds Python objects beside tensors, numbers and strings. Save the state dict "
            f"alone: torch.save(model.state_dict(), path)."
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is truncated or not a checkpoint: {error}"
        ) from error


def _find_state_dict(content: Any, where: str) -> "OrderedDict[str, Tensor]":
    for key in _MODEL_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(
            f"{where} holds {_describe(content)}; expected a state dict, or a dict with one under "
            f"{' or '.join(map(repr, _MODEL_KEYS))}."
        )
    strangers = [str(k) for k, v in content.items() if not isinstance(v, Tensor)]
    if strangers:
        raise ValueError(
            f"{where} is no state dict: {', '.join(strangers[:3])} hold(s) no tensor. Expected "
            f"tensors by parameter name, or a dict with such a dict under "
            f"{' or '.join(map(repr, _MODEL_KEYS))}."
        )
    state = OrderedDict(content)
    metadata = getattr(content, "_metadata", None)
    if metadata is not None:
        state._metadata = metadata.copy()  # type: ignore[attr-defined]
    if all(name.startswith("module.") for name in state):
        consume_prefix_in_state_dict_if_present(state, "module.")
    return state


def _describe(content: Any) -> str:
    return "nothing" if isinstance(content, Mapping) else f"a {type(content).__name__}"
