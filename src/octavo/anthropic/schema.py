"""The bodies of ``/v1/messages`` and ``/v1/messages/count_tokens``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from octavo.openai.decode import Fields


class PromptFields(Fields, kw_only=True):
    """What a prompt is made of. Content is a text or a list of blocks; marks for caching change nothing here, where
    all prompts are cached."""

    messages: list[dict[str, Any]]
    model: str | None = None
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None

    IGNORED: ClassVar[frozenset[str]] = frozenset({"metadata", "service_tier", "cache_control", "inference_geo"})
    UNSUPPORTED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "container": (),
        "context_management": (),
        "mcp_servers": ([],),
        "output_config": ({},),
        "output_format": (),
    }


class CountTokensRequest(PromptFields, kw_only=True):
    """The body of ``/v1/messages/count_tokens``."""


class MessagesRequest(PromptFields, kw_only=True):
    """The body of ``/v1/messages``."""

    max_tokens: int
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
