"""TI Deep Learning (TIDL)."""
