"""From a float model to a prepared one: configuration, annotation, insertion."""
