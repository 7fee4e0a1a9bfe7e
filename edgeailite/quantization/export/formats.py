"""The kinds of ONNX file that a wrapper writes, by name."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum


class ExportFormat(str, Enum):
    """What an exported file holds.

    Attributes:
        FLOAT_MODEL: The float model: no quantizers, batch norm as the original computes it.
        FAKEQ_MODEL: The simulation: float operators, weights and biases on their grids,
            QuantizeLinear and DequantizeLinear at every activation quantizer.
        QDQ_MODEL: The integer graph: int8 weights and int32 biases, QuantizeLinear and
            DequantizeLinear around every operator.
        INT_MODEL: The integer graph in operators that take and return integers (QLinearConv, ...).
        CLIP_MODEL: The float graph with a Clip at every activation quantizer, batch norm folded,
            weights on their grids.
        TINPU_INT_MODEL: The integer graph with offset, multiplier and shift, integers carried in
            float32: ``Conv`` or ``Gemm``, ``Add``, ``Mul``, ``Floor``, ``Clip``.
    """

    FLOAT_MODEL = "FLOAT_MODEL"
    FAKEQ_MODEL = "FAKEQ_MODEL"
    QDQ_MODEL = "QDQ_MODEL"
    INT_MODEL = "INT_MODEL"
    CLIP_MODEL = "CLIP_MODEL"
    TINPU_INT_MODEL = "TINPU_INT_MODEL"

    @classmethod
    def choices(cls) -> tuple[str, ...]:
        """All names, for command lines."""
        return tuple(cls.__members__)

    @classmethod
    def parse(
        cls, name: ExportFormat | str, allowed: Sequence[ExportFormat] | None = None
    ) -> ExportFormat:
        """The format of that name.

        Args:
            name: A format or its name.
            allowed: Those that can be written here; None: all.

        Raises:
            ValueError: It is none of the allowed ones.
        """
        offered = list(cls) if allowed is None else list(allowed)
        names = ", ".join(repr(f.value) for f in offered)
        if name in [f.value for f in FROM_WRAPPER] and cls(name) not in offered:
            raise ValueError(
                f"format is {cls(name).value!r}, which needs the wrapper from before conversion; "
                f"a converted model holds integers and writes {names}."
            )
        if name not in offered:
            raise ValueError(f"format is {name!r}; allowed: {names}.")
        return cls(name)


FROM_WRAPPER = (ExportFormat.FLOAT_MODEL, ExportFormat.FAKEQ_MODEL, ExportFormat.CLIP_MODEL)
CONVERTED_FORMATS = (ExportFormat.QDQ_MODEL, ExportFormat.INT_MODEL)
