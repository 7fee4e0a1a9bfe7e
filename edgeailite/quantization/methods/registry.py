"""Post-training methods by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from edgeailite.quantization.graph.model import GraphModel

Batches = Sequence[tuple[Any, ...]]
Method = Callable[[GraphModel, Batches], list[str]]
AnyMethod = TypeVar("AnyMethod", bound=Callable[..., list[str]])

METHODS: dict[str, Method] = {}
# Names of those that leave the float function as it is: ranges, scales of channels.
KEEPING_FUNCTION: set[str] = set()


def post_training_method(
    name: str, *, keeps_function: bool = False
) -> Callable[[AnyMethod], AnyMethod]:
    """Register a post-training method, so that ``calibrate(quality=[name])`` finds it.

    The method is called with the prepared model in evaluation mode and the batches, a tuple of the
    model's inputs for each. It returns the paths of the layers or quantizers that it changed. One
    with a parameter ``reference`` is also given the model in float, as it was before the first
    method that does not keep its function.

    Args:
        name: Name to register under.
        keeps_function: In float the model computes afterwards what it computed before.

    Returns:
        A decorator that registers a function and leaves it as it is.

    Raises:
        ValueError: There is a method of this name already.

    Example:
        >>> @post_training_method("zero_biases")
        ... def zero_biases(model, batches):
        ...     layers = [c for c in layer_calls(model) if c.bias is not None]
        ...     for call in layers:
        ...         call.bias.data.zero_()
        ...     return [call.path for call in layers]
        >>> wrapper.calibrate(loader, quality=["activation_ranges", "zero_biases"])
    """

    def register(method: AnyMethod) -> AnyMethod:
        if name in METHODS:
            known = getattr(METHODS[name], "__module__", "another file")
            raise ValueError(
                f"A post-training method '{name}' is registered already, by {known}. "
                "Choose another name."
            )
        METHODS[name] = method
        if keeps_function:
            KEEPING_FUNCTION.add(name)
        return method

    return register
