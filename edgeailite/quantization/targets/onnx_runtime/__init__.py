"""ONNX Runtime and other int8 runtimes that requantize in float32."""
