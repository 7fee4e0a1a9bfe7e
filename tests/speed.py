"""What makes the suite faster and changes no test."""

from __future__ import annotations

import copy
import functools
import gc
import sys
from types import SimpleNamespace
from typing import Any

import torch
import torch.fx.config

from tests.decompositions import decompose_operators_alone


def spare_the_collector() -> None:
    """Leave the imported modules' half a million objects out of every garbage collection."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def share_exporter_tables() -> None:
    """Make the tables of torch's exporter once, if it is loaded, and look things up in no loops.

    An export of a thousand operators takes two thirds of the time.
    """
    _share_torchlib()
    _share_composite_operators()
    _share_signatures()
    _compare_names_without_patterns()
    _pass_over_rules_of_other_operators()
    decompose_operators_alone()
    _promote_types_without_a_run()


def leave_out_traces() -> None:
    """Trace graphs without the lines of code that their nodes come from: a twelfth of an export.

    A test of files without them sets the flag back.
    """
    torch.fx.config.do_not_emit_stack_traces = True


def _share_torchlib() -> None:
    """Build the table of ONNX functions once; by itself each export takes 0.4 s for it."""
    module: Any = sys.modules.get("torch.onnx._internal.exporter._registration")
    if module is None or hasattr(module.ONNXRegistry.from_torchlib, "built"):
        return
    build = functools.cache(module.ONNXRegistry.from_torchlib)

    def from_torchlib(*args: Any, **kwargs: Any) -> Any:
        registry = copy.copy(build(*args, **kwargs))
        registry.functions = {name: list(found) for name, found in registry.functions.items()}
        return registry

    from_torchlib.built = build  # type: ignore[attr-defined]
    module.ONNXRegistry.from_torchlib = staticmethod(from_torchlib)
    spare_the_collector()


def _share_composite_operators() -> None:
    """Look for the composite operators once; by itself each export takes 0.15 s for it.

    Operators that are registered later are looked for again.
    """
    readers: list[Any] = [
        sys.modules.get(f"torch.export.{name}") for name in ("exported_program", "decomp_utils")
    ]
    if None in readers or hasattr(readers[0]._collect_all_valid_cia_ops, "found"):
        return
    collect, found = readers[0]._collect_all_valid_cia_ops, {}

    def collect_once() -> Any:
        names = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
        key = frozenset(names)
        if key not in found:
            found[key] = frozenset(collect())
        return found[key]

    collect_once.found = found  # type: ignore[attr-defined]
    for module in readers:
        module._collect_all_valid_cia_ops = collect_once


def _share_signatures() -> None:
    """Make the tables of parameters and buffers once a graph; by itself torch does for each input.

    Only their reader gets them: a signature changes while a graph is made.
    """
    for name in ("torch.export.exported_program", "torch.export._trace"):
        module: Any = sys.modules.get(name)
        if module is None or hasattr(module._populate_param_buffer_metadata_to_new_gm, "original"):
            continue
        module._populate_param_buffer_metadata_to_new_gm = _with_tables(
            module._populate_param_buffer_metadata_to_new_gm
        )


def _with_tables(original: Any) -> Any:
    def populate(metadata: Any, graph: Any, signature: Any) -> None:
        tables = ("inputs_to_parameters", "inputs_to_buffers")
        original(metadata, graph, SimpleNamespace(**{n: getattr(signature, n) for n in tables}))

    populate.original = original  # type: ignore[attr-defined]
    return populate


def _compare_names_without_patterns() -> None:
    """Compare a module's name with each of its siblings' as text first."""
    module: Any = sys.modules.get("torch.export.unflatten")
    if module is None or hasattr(module._is_call_name, "original"):
        return
    original = module._is_call_name

    def is_call_name(call_name: str, base: str) -> bool:
        return call_name.startswith(base) and original(call_name, base)

    is_call_name.original = original  # type: ignore[attr-defined]
    module._is_call_name = is_call_name


def _pass_over_rules_of_other_operators() -> None:
    """Leave a rule of the optimizer out whose first output comes from another operator.

    By itself it sorts all operators of the graph before it looks at this one.
    """
    module: Any = sys.modules.get("onnxscript.rewriter._matcher")
    if module is None or hasattr(module.SimplePatternMatcher.match, "original"):
        return
    original, failed = module.SimplePatternMatcher.match, module._basics.MatchResult

    def match(self: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        operator = self.pattern.output_nodes[0].op_identifier()
        if operator is not None and operator != node.op_identifier():
            return failed().fail("another operator", node)
        return original(self, model, graph, node, **options)

    match.original = original  # type: ignore[attr-defined]
    module.SimplePatternMatcher.match = match


def _promote_types_without_a_run() -> None:
    """Take the values that the graph has; by itself the exporter runs every node for them."""
    module: Any = sys.modules.get("torch.onnx._internal.fx.passes.type_promotion")
    if module is None or hasattr(module._TypePromotionInterpreter.run_node, "original"):
        return
    original = module._TypePromotionInterpreter.run_node

    def run_node(self: Any, node: Any) -> Any:
        if node.op != "call_function" or "val" not in node.meta:
            return original(self, node)
        rule = module.get_type_promotion_rule(node, self.type_promotion_table)
        if rule:
            with self._set_current_node(node):
                self._maybe_promote_node(node, rule)  # runs what it changes
        return node.meta["val"]

    run_node.original = original  # type: ignore[attr-defined]
    module._TypePromotionInterpreter.run_node = run_node
