"""The number system: grids, scales, rounding, fake quantization. Functions of tensors only."""
