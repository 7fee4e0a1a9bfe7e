"""Laws of the table of operations: every row, every call of a row, every target."""

import copy
import dataclasses
import inspect
import operator
import pickle
import warnings

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from edgeailite.quantization.graph import registry
from edgeailite.quantization.graph.calls import arguments, read_call
from edgeailite.quantization.graph.operations import BATCH_NORM
from edgeailite.quantization.graph.registry import (
    OPERATIONS,
    REQUIRED,
    operation_of_function,
    operation_of_method,
    operation_of_module,
    register_operation,
)
from edgeailite.quantization.graph.traits import NONE, Traits
from edgeailite.quantization.targets.registry import TARGETS

FUNCTIONS = list(registry._BY_FUNCTION)
METHODS = list(registry._BY_METHOD)
MODULES = list(registry._BY_MODULE)
TRAITS = [field.name for field in dataclasses.fields(Traits)]
# Rows that other rows' arguments lead to, with the row that is called.
VARIANTS = {"resize_nearest": "resize", "resize_cubic": "resize", "pad_from_inside": "pad",
            "pad_with_value": "pad", "pad_below": "pad"}  # fmt: skip
# Parameters that torch has in C++ only.
FROM_ELSEWHERE = {
    "to_device": ("device", "non_blocking", "memory_format"),
    "einsum": ("equation", "operands"),
    "attention": (
        *("query", "key", "value", "attn_mask", "dropout_p"),
        *("is_causal", "scale", "enable_gqa"),
    ),
    "where": ("condition", "input", "other"),
}
# Overloads that are other operations, and parameters of rare overloads that no row reads.
OTHER_OVERLOADS = {"view.dtype", "conv1d.padding", "conv2d.padding", "conv3d.padding",
                   "max.dim_max", "min.dim_min"}  # fmt: skip
NOT_READ = {("expand", "implicit"), ("bmm", "out_dtype")}
# Two ways to say the same.
DEFAULTS = {
    ("pad", "value"): 0,
    ("contiguous", "memory_format"): None,
    ("linalg_vector_norm", "ord"): "fro",
    ("linalg_norm", "ord"): "fro",
}


def row_id(operation):
    return operation.name


def call_name(call):
    return call if isinstance(call, str) else call.__name__


def call_id(call):
    return f".{call}" if isinstance(call, str) else f"{call.__module__}.{call.__name__}"


# ---- rows ---------------------------------------------------------------------------------------


def test_no_trait_has_a_default():
    assert all(
        field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        for field in dataclasses.fields(Traits)
    )


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=row_id)
def test_a_row_answers_every_trait(operation):
    answers = {name: getattr(operation.traits, name) for name in TRAITS}
    assert {name: type(answer) for name, answer in answers.items()} == dict.fromkeys(TRAITS, bool)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=row_id)
def test_traits_of_a_row_agree_with_each_other(operation):
    traits = operation.traits
    families = [traits.has_weight, traits.moves_values, traits.is_activation, traits.averages]
    assert sum(families) <= 1
    assert traits.moves_values or not traits.splits
    assert traits.reads_one or not (traits.moves_values or traits.keeps_order or traits.averages)
    assert not (traits.joins_grids and traits.reads_one)
    assert traits.joins_grids or not traits.concatenates


def test_a_row_is_found_by_its_name():
    assert all(name == operation.name for name, operation in OPERATIONS.items())


@pytest.mark.parametrize("function", FUNCTIONS, ids=call_id)
def test_a_function_leads_to_one_row(function):
    rows = [row for row in OPERATIONS.values() if row is operation_of_function(function)]
    assert len(rows) == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_one_of_a_tensor_and_leads_to_one_row(method):
    assert callable(getattr(torch.Tensor, method))
    rows = [row for row in OPERATIONS.values() if row is operation_of_method(method)]
    assert len(rows) == 1


@pytest.mark.parametrize("module_type", MODULES, ids=lambda t: t.__name__)
def test_a_module_and_a_subclass_of_it_lead_to_its_row(module_type):
    class Subclass(module_type):
        pass

    row = registry._BY_MODULE[module_type]
    assert OPERATIONS[row.name] is row
    for made in (module_type, Subclass):
        assert operation_of_module(made.__new__(made)) is row


@pytest.mark.parametrize("type_name", registry._BY_TYPE_NAME)
def test_a_name_of_a_type_leads_to_its_row(type_name):
    made = type(type_name, (nn.Module,), {})()
    assert OPERATIONS["drop_path"] is operation_of_module(made)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (torch.nn.functional.relu6, "relu6"), (torch.nn.functional.conv_transpose3d,
        "transposed_convolution"), (torch.flatten, "flatten"), (operator.getitem, "index"),
        (operator.isub, "sub"), (torch.bmm, "matmul"), (torch.narrow, "select"),
        (getattr, "scalar"), (torch.amin, "extreme"), (torch.pow, "floor_div_or_pow"),
        ("view", "reshape"), ("clip_", "clamp"), ("t", "transpose"), ("numel", "scalar"),
        (nn.SyncBatchNorm, "batch_norm"), (nn.ConstantPad3d, "pad"), (nn.Dropout1d, "dropout"),
        (nn.ReplicationPad1d, "pad_from_inside"), (nn.AlphaDropout, "drop_path"),
    ],
)  # fmt: skip
def test_a_call_leads_to_the_row_of_its_name(call, name):
    tables = (registry._BY_FUNCTION, registry._BY_METHOD, registry._BY_MODULE)
    assert [table[call].name for table in tables if call in table] == [name]


# ---- arguments ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter as torch has it; one without a name is positional only."""

    name: str
    default: object = REQUIRED
    is_keyword_only: bool = False
    is_list: bool = False


def signatures(call):
    """Signatures of a function, or of the tensor method of a name: Python's, or torch's schemas."""
    function = getattr(torch.Tensor, call) if isinstance(call, str) else call
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a builtin of torch
        overloads = getattr(torch.ops.aten, function.__name__)
        schemas = [getattr(overloads, name)._schema for name in overloads.overloads()]
        return [
            [
                Parameter(
                    a.name,
                    one_value(a.default_value) if a.has_default_value() else REQUIRED,
                    a.kwarg_only,
                    str(a.type) == "List[Tensor]",
                )
                for a in schema.arguments
                if (call_name(call), a.name) not in NOT_READ
            ]
            for schema in schemas
            if schema.arguments[0].name in ("self", "input", "tensors")
            and str(schema.arguments[0].type) in ("Tensor", "List[Tensor]")
            and schema.arguments[-1].name != "out"
            and f"{call_name(call)}.{schema.overload_name}" not in OTHER_OVERLOADS
        ]
    kinds = inspect.Parameter
    if any(p.kind is kinds.VAR_POSITIONAL for p in parameters):
        return []
    return [
        [
            Parameter(
                "" if p.kind is kinds.POSITIONAL_ONLY else p.name,
                REQUIRED if p.default is kinds.empty else p.default,
                p.kind is kinds.KEYWORD_ONLY,
            )
            for p in parameters
        ]
    ]


def one_value(default):
    """Torch's list of equal numbers as one number; an empty list is no number."""
    return (default[0] if default else None) if isinstance(default, list) else default


def bound(call, positional, by_keyword=()):
    """Arguments of a call, by the names of its row; values are the names of the parameters."""
    graph = fx.Graph()

    def value(parameter, place):
        node = graph.placeholder(parameter.name or f"p{place}")
        node.meta["call"] = read_call(node, None)
        return [node] if parameter.is_list else node

    args = tuple(value(p, i) for i, p in enumerate(positional))
    kwargs = {p.name: value(p, 0) for p in by_keyword}
    make = graph.call_method if isinstance(call, str) else graph.call_function
    node = make(call, args, kwargs)
    node.meta["call"] = read_call(node, None)
    return {name: plain(argument) for name, argument in arguments(node).items()}


def plain(value):
    if isinstance(value, tuple | list):
        return plain(value[0]) if len(value) == 1 else (tuple(map(plain, value)) or None)
    return value.target if isinstance(value, fx.Node) else value


CALLS = [
    pytest.param(call, signature, id=f"{call_id(call)}-{number}")
    for table in (registry._BY_FUNCTION, registry._BY_METHOD)
    for call, row in table.items()
    if row.parameters
    for number, signature in enumerate(signatures(call))
]


@pytest.mark.parametrize(("call", "signature"), CALLS)
def test_arguments_by_position_are_those_by_keyword(call, signature):
    last = [p for p in signature if p.is_keyword_only]
    positional = [p for p in signature if not p.is_keyword_only]
    found = bound(call, positional, last)
    names = [p.name or f"p{i}" for i, p in enumerate(signature)]
    assert [found[name] for name in found if found[name] in names] == names
    if all(p.name for p in signature):
        assert bound(call, positional[:1], [*positional[1:], *last]) == found


@pytest.mark.parametrize(("call", "signature"), CALLS)
def test_an_argument_that_is_left_out_has_the_default_of_the_function(call, signature):
    names = {value: name for name, value in bound(call, signature).items()}
    required = [p for p in signature if p.default is REQUIRED]
    found = bound(call, required)
    for parameter in signature:
        if parameter.default is not REQUIRED:
            key = call_name(call), parameter.name
            assert found[names[parameter.name]] == DEFAULTS.get(key, parameter.default)


def test_all_operands_of_an_einsum_are_read():
    operands = [Parameter("a"), Parameter("b"), Parameter("c")]
    found = bound(torch.einsum, [Parameter("equation"), *operands])
    assert found == {"equation": "equation", "operands": ("a", "b", "c")}


@pytest.mark.parametrize(
    ("call", "name"),
    [
        ("reshape", "sizes"), ("view", "sizes"), ("permute", "dims"), ("squeeze", "dim"),
        ("flip", "dims"), ("expand", "sizes"), ("repeat", "sizes"), ("tile", "sizes"),
    ],
)  # fmt: skip
def test_sizes_one_by_one_are_those_of_a_sequence(call, name):
    assert bound(call, [Parameter("x"), Parameter("a"), Parameter("b")])[name] == ("a", "b")


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=row_id)
def test_a_parameter_of_a_row_is_one_of_a_call(operation):
    found = set()
    for case in CALLS:
        call, signature = case.values
        table = registry._BY_METHOD if isinstance(call, str) else registry._BY_FUNCTION
        if table[call] is operation:
            names = [p.name or f"p{i}" for i, p in enumerate(signature)]
            found |= {name for name, value in bound(call, signature).items() if value in names}
    for module_type, row in registry._BY_MODULE.items():
        if row is operation:
            for function in (module_type.__init__, module_type.forward):
                found |= set(inspect.signature(function).parameters)
    found |= set(FROM_ELSEWHERE.get(operation.name, ()))
    if operation.name in VARIANTS:
        assert operation.parameters == OPERATIONS[VARIANTS[operation.name]].parameters
    else:
        assert set(operation.parameters) <= found


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (nn.Conv2d(2, 4, 3, 2, 1, bias=False), "stride", (2, 2)),
        (nn.ConvTranspose1d(2, 4, 3, output_padding=1, stride=2), "output_padding", (1,)),
        (nn.AvgPool3d(2, count_include_pad=False), "count_include_pad", False),
        (nn.AvgPool1d(3), "divisor_override", None),
        (nn.MaxPool2d(3), "stride", 3),
        (nn.AdaptiveAvgPool2d((1, 2)), "output_size", (1, 2)),
        (nn.Hardtanh(-2, 3), "max_val", 3),
        (nn.ZeroPad2d(2), "pad", (2, 2, 2, 2)),
        (nn.ReflectionPad1d(1), "pad", (1, 1)),
        (nn.ConstantPad1d(1, 0.0), "value", 0.0),
        (nn.Unflatten(1, (2, 2)), "sizes", (2, 2)),
        (nn.Flatten(), "start_dim", 1),
        (nn.Upsample(scale_factor=2, mode="bilinear"), "mode", "bilinear"),
        (nn.PixelShuffle(3), "upscale_factor", 3),
        (nn.ChannelShuffle(2), "groups", 2),
        (nn.Dropout(0.25), "p", 0.25),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_the_arguments_of_a_module_are_its_attributes(module, name, value):
    graph = fx.Graph()
    node = graph.call_module("part", (graph.placeholder("x"),))
    for each in graph.nodes:
        each.meta["call"] = read_call(each, module if each is node else None)
    assert operation_of_module(module) is not None
    assert arguments(node)[name] == value
    assert arguments(node)["input"].target == "x"


# ---- registration -------------------------------------------------------------------------------


@pytest.fixture
def table(monkeypatch):
    """The table, which is as before when the test ends."""
    for name in ("OPERATIONS", "_BY_MODULE", "_BY_FUNCTION", "_BY_METHOD", "_BY_TYPE_NAME"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))
    return registry.OPERATIONS


def test_a_name_is_registered_once(table):
    with pytest.raises(ValueError, match=r"^There is an operation 'add' already\.$"):
        register_operation("add", NONE)


@pytest.mark.parametrize(
    ("calls", "known"),
    [
        ({"modules": [nn.ReLU]}, "relu"),
        ({"functions": [torch.cat]}, "cat"),
        ({"methods": ["mean"]}, "mean"),
        ({"type_names": ["DropPath"]}, "drop_path"),
    ],
)
def test_a_call_is_registered_once(table, calls, known):
    message = rf"is a call of operation '{known}' and cannot be registered as 'new' too\.$"
    with pytest.raises(ValueError, match=message):
        register_operation("new", NONE, "input", **calls)
    assert "new" not in table
    with pytest.raises(ValueError, match=message.replace("'new'", "'sub'")):
        table["sub"].register(**calls)


def test_a_call_may_be_registered_again_for_its_own_row(table):
    table["relu"].register(modules=[nn.ReLU], methods=["relu"])
    assert operation_of_module(nn.ReLU()) is table["relu"]


def test_a_new_row_is_found_by_its_calls(table):
    class Own(nn.Module):
        pass

    row = register_operation("own", NONE, "input, *sizes, size=2", modules=[Own])
    assert operation_of_module(Own()) is row
    assert table["own"] is row


def test_an_unknown_name_is_answered_with_those_there_are():
    with pytest.raises(ValueError, match=r"no operation 'nothing'; there are: input, output, "):
        registry.operation_named("nothing")


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=row_id)
def test_a_copy_of_a_row_is_the_row(operation):
    assert copy.deepcopy(operation) is operation
    assert pickle.loads(pickle.dumps(operation)) is operation


# ---- targets ------------------------------------------------------------------------------------

ON_ALL = {
    "convolution", "transposed_convolution", "linear", "batch_norm", "relu", "relu6", "hardtanh",
    "clamp", "add", "cat", "stack", "avg_pool", "adaptive_avg_pool", "mean", "sum",
    "maximum",
}  # fmt: skip
ON_RUNTIMES = ON_ALL | {
    "sub", "mul", "div", "prelu", "matmul", "einsum", "resize", "resize_cubic", "pointwise",
    "softmax", "functional_softmax", "layer_norm", "rms_norm", "group_norm", "instance_norm",
    "normalize", "vector_norm", "norm", "norm_along", "pad_with_value",
    "fold",
}  # fmt: skip
COMPUTED = {
    "onnx_runtime": ON_RUNTIMES,
    "tidl": ON_RUNTIMES,
    "tinpu": ON_ALL | {"mul", "pointwise", "softmax", "functional_softmax"},
}


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_computes_these_operations(target):
    answers = {name: TARGETS[target].computes(row) for name, row in OPERATIONS.items()}
    assert {type(answer) for answer in answers.values()} == {bool}
    assert {name for name, answer in answers.items() if answer} == COMPUTED[target]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=row_id)
def test_a_computed_operation_is_absorbed_or_has_a_rule(target, operation):
    if TARGETS[target].computes(operation):
        absorbed = operation.traits.is_activation or operation is BATCH_NORM
        assert absorbed or TARGETS[target].rules.fused(operation) is not None
    else:
        assert TARGETS[target].rules.fused(operation) is None
        assert not operation.traits.is_activation


# ---- ONNX ---------------------------------------------------------------------------------------

MOVES = {
    "max_pool": lambda x: F.max_pool2d(x, 2),
    "extreme": lambda x: (x.amax(1), x.amin((2, 3))),
    "resize_nearest": lambda x: F.interpolate(x, scale_factor=2),
    "pad": lambda x: F.pad(x, (1, 0, 2, 1)),
    "pad_below": lambda x: F.max_pool2d(F.pad(x, (1, 0, 1, 0), value=-torch.inf), 2),
    "pad_from_inside": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "identity": lambda x: x.clone(),
    "flatten": lambda x: torch.flatten(x, 1),
    "unflatten": lambda x: x.unflatten(1, (2, 2)),
    "reshape": lambda x: x.reshape(2, 2, 2, 36),
    "reshape_as": lambda x: x.reshape_as(x),
    "squeeze": lambda x: x[:, :1].squeeze(1),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "transpose": lambda x: x.transpose(1, 2),
    "movedim": lambda x: x.movedim(1, 3),
    "split": lambda x: x.chunk(2, 1),
    "unbind": lambda x: x.unbind(1),
    "index": lambda x: (x[:, 1:3, ::2], x[:, 2]),
    "select": lambda x: x.select(1, 2),
    "expand": lambda x: x.unsqueeze(1).expand(-1, 3, -1, -1, -1),
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 2),
    "max": lambda x: (x.max(), torch.min(x)),
    "unfold": lambda x: F.unfold(x, 2, padding=1),
    "unfold_axis": lambda x: x.unfold(2, 3, 2),
}


# Nothing in an evaluated model, no ONNX form, or one that computes as well (roll has a Concat).
NOT_WRITTEN = {"dropout", "drop_path", "to_device", "to_type", "adaptive_max_pool",
               "repeat_interleave", "expand_as", "flip", "roll",
               "max_with_indices", "max_pool_with_indices", "adaptive_max_pool_with_indices",
               "max_unpool"}  # fmt: skip


class AllMoves(nn.Module):
    def forward(self, x):
        return [move(x) for move in MOVES.values()]


def test_all_that_moves_is_written_by_operators_of_the_table():
    moving = {name for name, row in OPERATIONS.items() if row.traits.moves_values}
    assert moving == set(MOVES) | NOT_WRITTEN
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(AllMoves(), (torch.randn(2, 4, 6, 6),), verbose=False)
    written = {node.op_type for node in program.model.graph} - {"Constant"}
    named = {operator for row in OPERATIONS.values() for operator in row.onnx}
    assert written <= named
    # Written by other versions of torch.
    assert named - written == {"Flatten", "SpaceToDepth"}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=row_id)
def test_only_what_moves_names_onnx_operators(operation):
    assert operation.traits.moves_values or operation.onnx == ()
    assert all(onnx.defs.has(name) for name in operation.onnx)
