"""Models on disk: found, fetched, opened and read lazily, whichever format they are in."""

from octavo.weights.checkpoint import Checkpoint, GenerationDefaults, LazyTensor
from octavo.weights.open import open_checkpoint
from octavo.weights.source import resolve

__all__ = ["Checkpoint", "GenerationDefaults", "LazyTensor", "open_checkpoint", "resolve"]
