"""Importing large packages, torch above all, without the garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def large_imports() -> Iterator[None]:
    """For imports at the start of a program.

    They make a million objects that stay. The garbage collector would look through them again and again meanwhile, a
    tenth of the time, and once more at each later collection of all; so it is told not to see them.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
