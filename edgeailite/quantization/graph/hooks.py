"""Forward hooks of a user's modules: those that only look on go on, others are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map_only


class HookError(ValueError):
    """A hook changes a value."""


def has_forward_hooks(module: nn.Module) -> bool:
    """Return True if `module` has hooks of its own before or after its forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


@contextmanager
def own_hooks_watched(model: nn.Module) -> Iterator[set[int]]:
    """Watch the hooks of the model itself.

    Args:
        model: Runs, or is traced, until the end of the context.

    Yields:
        Numbers of the hooks that return something, and so change a value.
    """
    changing: set[int] = set()
    tables = (model._forward_pre_hooks, model._forward_hooks)
    before = [dict(table) for table in tables]

    def watched(number: int, hook: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            result = hook(*args)
            if result is not None:
                changing.add(number)
            return result

        return call

    try:
        for table in tables:
            table.update({number: watched(number, hook) for number, hook in table.items()})
        yield changing
    finally:
        for table, hooks in zip(tables, before, strict=True):
            table.update(hooks)


class HookCheck:
    """Callbacks of a run of a graph, which refuse hooks of layers that change values.

    A device runs no hooks: what they change would be lost with conversion.

    Args:
        module_of: The module that a node calls.
    """

    def __init__(self, module_of: Callable[[fx.Node], nn.Module | None]) -> None:
        self.module_of = module_of
        self.plain: Any = None

    def before(self, node: fx.Node, operands: list[Any]) -> None:
        """Run a layer with hooks without them."""
        module = self.module_of(node)
        if module is None or not has_forward_hooks(module):
            return
        values = dict(zip(node.all_input_nodes, operands, strict=True))
        given = fx.node.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
        args, kwargs = tree_map_only(Tensor, torch.clone, given)
        self.plain = module.forward(*args, **kwargs)

    def after(self, node: fx.Node, value: Any) -> None:
        """Compare what the layer gave with its hooks.

        Raises:
            HookError: It differs.
        """
        module = self.module_of(node)
        if module is None or not has_forward_hooks(module):
            return
        pairs = zip(tree_leaves(self.plain), tree_leaves(value), strict=False)
        if not all(torch.equal(a, b) for a, b in pairs if isinstance(a, Tensor)):
            raise HookError(
                f"A forward hook of '{node.target}' changes its value. Hooks do not run on a "
                "device: write what it does into the model's forward, or remove the hook."
            )
