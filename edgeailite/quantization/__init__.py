"""The quantization engine: capture, annotate, insert, train or calibrate, convert, export, verify."""
