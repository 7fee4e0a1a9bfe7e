"""Bits per layer: sensitivity, the choice for a budget, the search."""
