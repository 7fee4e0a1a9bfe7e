"""Rows of the table of operations: what a row holds, and how it is found.

The rows are in :mod:`~edgeailite.quantization.graph.operations`.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import fx, nn

if TYPE_CHECKING:
    from edgeailite.quantization.graph.traits import Traits


class _Required:
    """Stands for the default of a parameter that has none."""

    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED = _Required()


Variant = tuple[str, str]
"""Name of the row that a call belongs to instead, and why, for the report."""


class BoundCall(NamedTuple):
    """A call of a row, for a look at its arguments.

    Attributes:
        node: The call.
        arguments: All arguments by the names of the row, defaults filled in.
        module: The module that it calls, or None.
    """

    node: fx.Node
    arguments: Mapping[str, Any]
    module: nn.Module | None


ReadVariant = Callable[[BoundCall], Variant | None]


@dataclass(frozen=True, eq=False)
class Operation:
    """A row of the table.

    Attributes:
        name: Unique, as the rest of the engine names the operation.
        traits: See :class:`Traits`.
        parameters: Names of the arguments in the order of the call, with their defaults.
        variadic: The parameter that takes all further positional arguments, or one sequence.
        attributes: Where a module holds a parameter under another name.
        aliases: Other keywords of some of the calls, and the parameter that each one gives.
        bounds: Lower and upper bound of an activation function that is a clamp: numbers, or names
            of parameters.
        variant: Looks at a call's arguments: the row that the call belongs to instead, or None.
        onnx: The ONNX operators that an operation which moves values is written as.
    """

    name: str
    traits: Traits
    parameters: Mapping[str, Any] = field(default_factory=dict)
    variadic: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    bounds: tuple[float | str, float | str] | None = None
    variant: ReadVariant | None = None
    onnx: tuple[str, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are the row itself."""
        return operation_named, (self.name,)

    def register(
        self,
        *,
        modules: Iterable[type[nn.Module]] = (),
        functions: Iterable[Callable[..., Any]] = (),
        methods: Iterable[str] = (),
        type_names: Iterable[str] = (),
    ) -> None:
        """Let modules, functions and tensor methods be calls of this operation.

        Args:
            modules: Types; subclasses count, the most specific registered type decides.
            functions: Functions as ``torch.fx`` records them.
            methods: Names of tensor methods.
            type_names: Names of module types of libraries that are not imported here.

        Raises:
            ValueError: One of them belongs to another operation.
        """
        tables = (_BY_MODULE, _BY_FUNCTION, _BY_METHOD, _BY_TYPE_NAME)
        given = (tuple(keys) for keys in (modules, functions, methods, type_names))
        calls = [(t, key) for t, keys in zip(tables, given, strict=True) for key in keys]
        for table, key in calls:  # all or none of them
            known = table.get(key, self)
            if known is not self:
                raise ValueError(
                    f"{key!r} is a call of operation '{known.name}' and cannot be registered "
                    f"as '{self.name}' too."
                )
        for table, key in calls:
            table[key] = self


OPERATIONS: dict[str, Operation] = {}
_BY_MODULE: dict[Any, Operation] = {}
_BY_FUNCTION: dict[Any, Operation] = {}
_BY_METHOD: dict[Any, Operation] = {}
_BY_TYPE_NAME: dict[Any, Operation] = {}


def register_operation(
    name: str,
    traits: Traits,
    parameters: str = "",
    *,
    attributes: Mapping[str, str] | None = None,
    aliases: Mapping[str, str] | None = None,
    bounds: tuple[float | str, float | str] | None = None,
    variant: ReadVariant | None = None,
    onnx: tuple[str, ...] = (),
    modules: Iterable[type[nn.Module]] = (),
    functions: Iterable[Callable[..., Any]] = (),
    methods: Iterable[str] = (),
    type_names: Iterable[str] = (),
) -> Operation:
    """Add a row to the table.

    Args:
        name: Unique, as the rest of the engine names the operation.
        traits: Answers to all traits.
        parameters: The call as a Python signature, the tensors first:
            ``"input, dim=0, keepdim=False"``; ``*dims`` takes all that follow, or one sequence.
        attributes: Where a module holds a parameter under another name.
        aliases: Other keywords of some of the calls, and the parameter that each one gives.
        bounds: Lower and upper bound of an activation function that is a clamp.
        variant: Chooses another row by the arguments.
        onnx: The ONNX operators of an operation that moves values.
        modules: The calls of it; see :meth:`Operation.register`.
        functions: Likewise.
        methods: Likewise.
        type_names: Likewise.

    Raises:
        ValueError: An operation of this name exists, a call belongs to another one, an alias is one
            of no parameter, or traits and other fields contradict each other.
    """
    if name in OPERATIONS:
        raise ValueError(f"There is an operation '{name}' already.")
    if onnx and not traits.moves_values:
        raise ValueError(f"Operation '{name}' has onnx={onnx}, which needs the trait moves_values.")
    if bounds and not traits.is_activation:
        raise ValueError(f"Operation '{name}' has bounds, which need the trait is_activation.")
    defaults, variadic = _read_signature(parameters)
    names = attributes or {}, aliases or {}
    strangers = {*names[0], *names[1].values()} - defaults.keys()
    if strangers:
        raise ValueError(
            f"Operation '{name}' has attributes or aliases of {', '.join(sorted(strangers))}; its "
            f"parameters are {', '.join(defaults)}."
        )
    operation = Operation(name, traits, defaults, variadic, *names, bounds, variant, onnx)
    operation.register(modules=modules, functions=functions, methods=methods, type_names=type_names)
    OPERATIONS[name] = operation
    return operation


def _read_signature(parameters: str) -> tuple[dict[str, Any], str | None]:
    """Parameters with their defaults, and the one that takes all that follow."""
    function = ast.parse(f"def call({parameters}): pass").body[0]
    assert isinstance(function, ast.FunctionDef)
    names = [parameter.arg for parameter in function.args.args]
    defaults = [ast.literal_eval(default) for default in function.args.defaults]
    required = [REQUIRED] * (len(names) - len(defaults))
    found = dict(zip(names, [*required, *defaults], strict=True))
    if function.args.vararg is None:
        return found, None
    variadic = function.args.vararg.arg
    return {**found, variadic: REQUIRED}, variadic


def operation_named(name: str) -> Operation:
    """Look a row up by its name.

    Raises:
        ValueError: There is none; the message lists those there are.
    """
    if name not in OPERATIONS:
        raise ValueError(f"There is no operation '{name}'; there are: {', '.join(OPERATIONS)}.")
    return OPERATIONS[name]


def operation_of_module(module: nn.Module) -> Operation | None:
    """Row of the most specific type of a module that is registered; None if there is none."""
    by_name = _BY_TYPE_NAME.get(type(module).__name__)
    if by_name is not None:
        return by_name
    return next((_BY_MODULE[t] for t in type(module).__mro__ if t in _BY_MODULE), None)


def is_registered(module_type: type[nn.Module]) -> bool:
    """Return True if this very type is a call of an operation, so that nobody looks inside."""
    return module_type in _BY_MODULE or module_type.__name__ in _BY_TYPE_NAME


def operation_of_function(function: Any) -> Operation | None:
    """Row of a function; None if it has none."""
    return _BY_FUNCTION.get(function)


def operation_of_method(name: str) -> Operation | None:
    """Row of a tensor method; None if it has none."""
    return _BY_METHOD.get(name)


def calls_of(operation: Operation) -> dict[str, tuple[Any, ...]]:
    """Return the calls of an operation by kind, each as :meth:`Operation.register` takes them."""
    tables = {
        "modules": _BY_MODULE,
        "functions": _BY_FUNCTION,
        "methods": _BY_METHOD,
        "type_names": _BY_TYPE_NAME,
    }
    return {
        kind: tuple(call for call, row in table.items() if row is operation)
        for kind, table in tables.items()
    }


def modules_of(*names: str) -> tuple[type[nn.Module], ...]:
    """Module types that are calls of operations, in the order of their registration."""
    return tuple(t for t, operation in _BY_MODULE.items() if operation.name in names)


def each(owner: Any, *names: str) -> tuple[Any, ...]:
    """Attributes of a module for one, two and three dimensions: ``{}`` stands for the number."""
    return tuple(getattr(owner, name.format(n)) for name in names for n in (1, 2, 3))


def moving_onnx_operators() -> frozenset[str]:
    """ONNX operators that operations which move values are written as."""
    moving = (operation for operation in OPERATIONS.values() if operation.traits.moves_values)
    return frozenset(name for operation in moving for name in operation.onnx)
