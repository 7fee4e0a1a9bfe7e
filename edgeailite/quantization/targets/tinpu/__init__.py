"""TI NPU microcontrollers: offset, multiplier and shift."""
