"""What the wrappers share, by its documented path."""
