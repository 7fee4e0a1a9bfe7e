"""Real tensors behind the fake ones that ``torch.export`` traces with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes


@contextmanager
def with_real_tensors(model: nn.Module) -> Iterator[None]:
    """Put the real parameters and buffers of `model` back, outside of the trace that is going on.

    The converter of the trace knows the tensor that each fake one stands for. So these are the
    tensors that the model has at this moment, whoever set them.

    Raises:
        RuntimeError: A parameter or buffer is computed within the trace: it has no values.
    """
    places = list(_fake_places(model))
    reals = _real_tensors(places)
    with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
        try:
            for (tensors, name, _), real in zip(places, reals, strict=True):
                tensors[name] = real
            yield
        finally:
            for tensors, name, fake in places:
                tensors[name] = fake


# Dictionary of a module, a name in it, and the fake tensor there.
_Place = tuple[dict[str, Any], str, Any]


def _fake_places(model: nn.Module) -> Iterator[_Place]:
    """Places of the parameters and buffers that fake tensors have replaced."""
    from torch._subclasses.fake_tensor import FakeTensor  # only while something is exported

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if isinstance(tensor, FakeTensor):
                    yield tensors, name, tensor


def _real_tensors(places: list[_Place]) -> list[Tensor]:
    """Real tensor of each place."""
    converters = {id(c): c for *_, fake in places for c in [fake.fake_mode.fake_tensor_converter]}
    real_of: dict[int, Tensor] = {}
    for converter in converters.values():
        fakes = converter.tensor_memo
        for real, number in converter.meta_converter.describer.lookup_tensor.items():
            if number in fakes:
                real_of[id(fakes[number])] = real
    computed = [name for _, name, fake in places if id(fake) not in real_of]
    if computed:
        raise RuntimeError(
            f"The model's {', '.join(map(repr, computed))} are computed while it is traced, so "
            "their values are not known. Export a module whose parameters and buffers are tensors."
        )
    return [real_of[id(fake)] for *_, fake in places]
