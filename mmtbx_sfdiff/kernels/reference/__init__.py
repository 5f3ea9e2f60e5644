"""The engine in plain PyTorch, for any device: the specification that every other engine is held to."""
