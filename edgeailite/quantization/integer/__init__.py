"""The integer graph: operators, conversion, memory."""
