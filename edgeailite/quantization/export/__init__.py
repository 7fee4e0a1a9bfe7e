"""ONNX writers, one a file. Only here is onnx imported."""
