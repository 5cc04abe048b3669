"""Models as graphs that run without torch, each measured against the model that it was made of."""
