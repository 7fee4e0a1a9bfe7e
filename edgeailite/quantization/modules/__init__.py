"""Modules of a prepared model: observers, activation quantizers, quantizing layers, norms."""
