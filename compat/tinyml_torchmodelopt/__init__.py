"""The import paths documented for microcontrollers; re-exports only."""
