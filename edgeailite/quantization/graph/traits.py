"""Traits: the questions that every operation of the table answers, and families of answers."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Traits:
    """Answers that every operation gives; none has a default.

    Attributes:
        has_weight: A layer with a weight, and perhaps a bias, of its own.
        moves_values: The result holds values of the operand, or zeros, so it lies on its grid.
        keeps_order: The values stay in their order in memory: only the shape changes.
        views: The result shares the operand's memory.
        splits: The result is a tuple of tensors.
        is_activation: A function that the quantizer behind it computes: a lower, an upper bound.
        is_pointwise: The result is a function of each value of the one operand, always the same:
            256 integers have 256 results.
        reads_one: One operand; further tensors in the call are sizes.
        keeps_sign: Operands without negative values give a result without them.
        keeps_channels: A positive factor on channel ``c`` of all operands is one on channel ``c``
            of the result, and on no other.
        joins_grids: The result holds sums or copies of operands, so one scale can serve them all.
        concatenates: The result holds the values of several operands, side by side.
        averages: The result holds averages of values of the operand, over windows that
            :class:`~edgeailite.quantization.graph.window_sums.WindowSum` knows.
        may_overwrite: Neither the operation's backward pass nor another operation needs the
            result: a quantizer behind it may overwrite it.
    """

    has_weight: bool
    moves_values: bool
    keeps_order: bool
    views: bool
    splits: bool
    is_activation: bool
    is_pointwise: bool
    reads_one: bool
    keeps_sign: bool
    keeps_channels: bool
    joins_grids: bool
    concatenates: bool
    averages: bool
    may_overwrite: bool


NONE = Traits(
    has_weight=False,
    moves_values=False,
    keeps_order=False,
    views=False,
    splits=False,
    is_activation=False,
    is_pointwise=False,
    reads_one=False,
    keeps_sign=False,
    keeps_channels=False,
    joins_grids=False,
    concatenates=False,
    averages=False,
    may_overwrite=False,
)
LAYER = replace(NONE, has_weight=True, may_overwrite=True)
ACTIVATION = replace(NONE, is_activation=True)
MOVE = replace(NONE, moves_values=True, reads_one=True, keeps_sign=True)
MOVE_IN_CHANNEL = replace(MOVE, keeps_channels=True)
VIEW = replace(MOVE, views=True)
RESHAPE = replace(VIEW, keeps_order=True)
IDENTITY = replace(RESHAPE, keeps_channels=True)
# An identity that decides about quantization: its value is not on the grid of its operand.
MARK = replace(NONE, reads_one=True, keeps_order=True, keeps_channels=True)
SPLIT = replace(VIEW, splits=True)
POINTWISE = replace(NONE, is_pointwise=True, reads_one=True)
ARITHMETIC = replace(NONE, may_overwrite=True)
AVERAGE = replace(NONE, reads_one=True, keeps_sign=True, keeps_channels=True, averages=True)
