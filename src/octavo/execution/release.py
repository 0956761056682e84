"""Memory that nobody uses any more goes back to the system, so that another model can be loaded into it."""

from __future__ import annotations

import gc

import torch


def release_unused() -> None:
    """Collect what only cycles hold, and give the device's free memory back: torch would keep it for itself."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
