"""Simulation, integer graph and ONNX Runtime, compared value by value."""

from edgeailite.quantization.verify.compare import Verification, first_difference, verify

__all__ = ["Verification", "first_difference", "verify"]
