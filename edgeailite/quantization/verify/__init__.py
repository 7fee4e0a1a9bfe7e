"""Simulation, integer graph and ONNX Runtime, compared value by value."""

from edgeailite.quantization.verify.compare import first_difference, verify
from edgeailite.quantization.verify.verification import Verification

__all__ = ["Verification", "first_difference", "verify"]
