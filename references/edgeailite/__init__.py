"""Scripts and their training loops."""
