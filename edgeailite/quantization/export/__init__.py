"""Writers of exported files, one a file. ONNX is imported only when one of them writes."""

# The order of these imports is the order of ExportFormat.choices().
# isort: off
from edgeailite.quantization.export import float_model
from edgeailite.quantization.export import fakeq
from edgeailite.quantization.export import qdq
from edgeailite.quantization.export import int_model
from edgeailite.quantization.export import clip
from edgeailite.quantization.export import tinpu
# isort: on

from edgeailite.quantization.export.argmax import append_argmax
from edgeailite.quantization.export.export_format import ExportFormat

__all__ = [
    "ExportFormat",
    "append_argmax",
    "clip",
    "fakeq",
    "float_model",
    "int_model",
    "qdq",
    "tinpu",
]
