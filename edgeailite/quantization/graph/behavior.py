"""Behavior of a model with given inputs: results, buffers afterwards, gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from edgeailite.quantization.graph.modes import buffers_kept, in_mode
from edgeailite.quantization.graph.structure import Example, flatten

_SEED = 0
# Largest difference of results, in units of the last place of the largest value: kernels that sum
# in another order, as where attention is opened, differ by so much.
_ROUNDING = 256.0

Call = Callable[[Example], Any]


@dataclass(frozen=True)
class Behavior:
    """Result and effects of a model with an example, in one mode.

    Attributes:
        structure: Of the result, without its tensors.
        tensors: Of the result.
        buffers: Buffers afterwards, by name.
        learning: Names of the parameters that the result has a gradient for; in training only.
    """

    structure: Any
    tensors: list[Tensor]
    buffers: dict[str, Tensor]
    learning: frozenset[str]


def observe(model: nn.Module, example: Example, training: bool, call: Call) -> Behavior:
    """Run a model once; buffers, modes and the random state are as before at the end.

    Every random operation begins with the same seed: a graph does not draw what no result needs.

    Args:
        model: Whose parameters and buffers are looked at.
        example: Inputs; copied.
        training: Mode.
        call: Runs the model.
    """
    with in_mode(model, training), _alone(model, example), torch.set_grad_enabled(training):
        with _Reseeding():
            tensors, structure = flatten(call(example.copied()))
        buffers = {name: buffer.clone() for name, buffer in named_tensors(model, "_buffers")}
        learning = _learning(model, tensors) if training else frozenset()
    return Behavior(structure, [t.detach() for t in tensors], buffers, learning)


class _Reseeding(TorchDispatchMode):
    """Random numbers of an operation depend on nothing that was drawn before."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            torch.manual_seed(_SEED)
        return func(*args, **(kwargs or {}))


@contextmanager
def _alone(model: nn.Module, example: Example) -> Iterator[None]:
    """Leave no trace: neither in buffers nor in the random state; no autocast from outside."""
    devices = {t.device for t in example.tensors}
    kind = next(iter(devices)).type if devices else "cpu"
    accelerators = [d for d in devices if d.type != "cpu"]
    with (
        torch.random.fork_rng(devices=accelerators, device_type=kind if accelerators else "cuda"),
        torch.autocast(kind, enabled=False),
        buffers_kept(model),
    ):
        yield


def named_tensors(model: nn.Module, kind: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and tensors of a model's ``_parameters`` or ``_buffers``, the kind."""
    for path, module in nn.Module.named_modules(model):
        for name, tensor in getattr(module, kind).items():
            if tensor is not None:
                yield f"{path}.{name}" if path else name, tensor


def _learning(model: nn.Module, tensors: list[Tensor]) -> frozenset[str]:
    """Parameters that autograd reaches from the results."""
    names = {id(parameter): name for name, parameter in named_tensors(model, "_parameters")}
    pending = [t.grad_fn for t in tensors if t.grad_fn is not None]
    seen, found = set(pending), set()
    while pending:
        function = pending.pop()
        variable = getattr(function, "variable", None)
        if variable is not None and id(variable) in names:
            found.add(names[id(variable)])
        for following, _ in function.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                pending.append(following)
    return frozenset(found)


def difference(wanted: Behavior, found: Behavior) -> str | None:
    """Say in what two behaviors differ; None: in nothing but rounding."""
    if wanted.structure != found.structure:
        return f"the result is {found.structure}, it should be {wanted.structure}"
    for i, (one, other) in enumerate(zip(wanted.tensors, found.tensors, strict=True)):
        message = _tensor_difference(one, other)
        if message:
            return f"result {i} {message}" if len(wanted.tensors) > 1 else f"the result {message}"
    for name, one in wanted.buffers.items():
        message = _tensor_difference(one, found.buffers[name])
        if message:
            return f"buffer '{name}' {message} afterwards"
    if wanted.learning != found.learning:
        more, less = found.learning - wanted.learning, wanted.learning - found.learning
        parts = (("a gradient for", more), ("no gradient for", less))
        return "there is " + " and ".join(f"{what} {sorted(n)[:3]}" for what, n in parts if n)
    return None


def _tensor_difference(wanted: Tensor, found: Tensor) -> str | None:
    if wanted.shape != found.shape:
        return f"has shape {tuple(found.shape)}, not {tuple(wanted.shape)}"
    if wanted.dtype != found.dtype:
        return f"has dtype {found.dtype}, not {wanted.dtype}"
    if torch.equal(wanted, found) or wanted.numel() == 0:
        return None
    if not wanted.is_floating_point():
        return "differs"
    distance = (wanted.double() - found.double()).abs()
    distance[(wanted == found) | (wanted.isnan() & found.isnan())] = 0
    largest = (
        wanted.abs()[wanted.isfinite()].max() if wanted.isfinite().any() else wanted.new_ones(())
    )
    units = float(distance.max() / (largest.double() * torch.finfo(wanted.dtype).eps + 1e-300))
    if units <= _ROUNDING:
        return None
    return (
        f"differs by up to {float(distance.max()):.3g}, its largest value is {float(largest):.3g}"
    )
