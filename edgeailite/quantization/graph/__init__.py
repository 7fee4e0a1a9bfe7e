"""A model as a graph: the table of operations, capture, running, recording."""
