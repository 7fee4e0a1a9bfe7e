"""The fx wrappers by their documented path; see ``edgeailite.quantization``."""

from edgeailite.quantization import PTCFxModule, PTQFxModule, QATFxModule, QConfigType

__all__ = ["PTCFxModule", "PTQFxModule", "QATFxModule", "QConfigType"]
