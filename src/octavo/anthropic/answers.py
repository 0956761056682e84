"""The answers of ``/v1/messages``."""

from __future__ import annotations

from typing import Any

import msgspec

from octavo.openai.metrics import Metrics, metrics_of
from octavo.openai.spoken import Call, Spoken
from octavo.outputs import CompletionOutput, RequestOutput


class TextBlock(msgspec.Struct, tag_field="type", tag="text"):
    text: str


class ThinkingBlock(msgspec.Struct, tag_field="type", tag="thinking"):
    """``signature`` is empty: nobody checks what was thought when it comes back."""

    thinking: str
    signature: str = ""


class ToolUseBlock(msgspec.Struct, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


Block = TextBlock | ThinkingBlock | ToolUseBlock


class AnthropicUsage(msgspec.Struct):
    """``input_tokens`` are those that were not found in the cache."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int = 0


class AnthropicMessage(msgspec.Struct):
    """``metrics`` is our own addition."""

    id: str
    model: str
    content: list[Block]
    stop_reason: str | None
    stop_sequence: str | None
    usage: AnthropicUsage
    metrics: Metrics | None = None
    type: str = "message"
    role: str = "assistant"


class TokenCount(msgspec.Struct):
    input_tokens: int


def anthropic_message(output: RequestOutput, said: Spoken, name: str, model: str) -> AnthropicMessage:
    """The answer with the first completion of a finished request."""
    (completion,) = output.outputs
    reason, sequence = stop_reason(completion, bool(said.calls))
    used = usage(output, len(output.prompt_token_ids), len(completion.token_ids))
    return AnthropicMessage(name, model, blocks(said), reason, sequence, used, metrics_of([output]))


def blocks(said: Spoken) -> list[Block]:
    """What was said, as content blocks: thoughts, text, calls."""
    thoughts = [ThinkingBlock(said.reasoning)] if said.reasoning else []
    texts = [TextBlock(said.content)] if said.content else []
    return [*thoughts, *texts, *map(_tool_use, said.calls)]


def usage(output: RequestOutput, read: int, written: int) -> AnthropicUsage:
    cached = output.metrics.num_cached_tokens
    return AnthropicUsage(read - cached, written, cached)


def stop_reason(completion: CompletionOutput, called: bool) -> tuple[str | None, str | None]:
    """Anthropic's ``stop_reason`` and ``stop_sequence``."""
    if completion.finish_reason == "length":
        return "max_tokens", None
    if completion.finish_reason == "stop" and isinstance(completion.stop_reason, str):
        return "stop_sequence", completion.stop_reason
    return None if completion.finish_reason is None else "tool_use" if called else "end_turn", None


def _tool_use(call: Call) -> ToolUseBlock:
    """Arguments that broke off are shown as far as they came, under a name that says so."""
    try:
        arguments = msgspec.json.decode(call.arguments or "{}")
    except msgspec.DecodeError:
        arguments = None
    if not isinstance(arguments, dict):
        arguments = {"incomplete_json": call.arguments}
    return ToolUseBlock(call.id, call.name, arguments)
