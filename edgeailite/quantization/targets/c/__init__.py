"""C99 for microcontrollers, written from integer graphs that requantize by a scale."""
