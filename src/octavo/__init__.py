"""Octavo: an LLM inference engine that is fast, small enough to read in a weekend, and made of glass.

The names below are loaded when first asked for, so that ``import octavo`` costs nothing and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from octavo.version import __version__

if TYPE_CHECKING:
    from octavo.async_llm import AsyncLLM
    from octavo.config import EngineConfig
    from octavo.engine import Engine
    from octavo.errors import ModelError, OctavoError, OutOfMemoryError, RequestError, UsageError
    from octavo.llm import LLM
    from octavo.outputs import CompletionOutput, Logprob, RequestOutput
    from octavo.sampling_params import SamplingParams
    from octavo.structured_outputs import StructuredOutputs

_HOMES = {
    "LLM": "octavo.llm",
    "AsyncLLM": "octavo.async_llm",
    "Engine": "octavo.engine",
    "EngineConfig": "octavo.config",
    "SamplingParams": "octavo.sampling_params",
    "StructuredOutputs": "octavo.structured_outputs",
    "RequestOutput": "octavo.outputs",
    "CompletionOutput": "octavo.outputs",
    "Logprob": "octavo.outputs",
    "OctavoError": "octavo.errors",
    "UsageError": "octavo.errors",
    "RequestError": "octavo.errors",
    "ModelError": "octavo.errors",
    "OutOfMemoryError": "octavo.errors",
}

__all__ = [
    "LLM",
    "AsyncLLM",
    "CompletionOutput",
    "Engine",
    "EngineConfig",
    "Logprob",
    "ModelError",
    "OctavoError",
    "OutOfMemoryError",
    "RequestError",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputs",
    "UsageError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'octavo' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
