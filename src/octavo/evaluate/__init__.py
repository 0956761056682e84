"""How well a model does, in one number."""
