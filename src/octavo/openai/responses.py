"""From finished requests to the bodies of ``chat.completion`` and ``text_completion``.

``stop_reason`` and ``prompt_logprobs`` are vLLM's additions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from octavo.openai.logprobs import (
    ChatLogprobs,
    CompletionLogprobs,
    TokenBytes,
    chat_logprobs,
    completion_logprobs,
    prompt_logprobs,
)
from octavo.outputs import CompletionOutput, RequestOutput

PromptLogprobs = list[dict[str, dict[str, Any]] | None] | None


@dataclass(frozen=True, slots=True)
class Answered:
    """Who answered, and when.

    Attributes:
        id: of the answer.
        created: in seconds since 1970.
        model: its name.
        token_bytes: of its tokenizer, or None if it has none.
    """

    id: str
    created: int
    model: str
    token_bytes: TokenBytes | None = None


class PromptTokensDetails(msgspec.Struct):
    cached_tokens: int


class Usage(msgspec.Struct):
    """Tokens that were read and written. A prompt counts once, however many completions it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class ChatMessage(msgspec.Struct):
    content: str
    role: str = "assistant"
    refusal: None = None


class ChatChoice(msgspec.Struct):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None


class ChatCompletion(msgspec.Struct):
    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs = None
    object: str = "chat.completion"
    system_fingerprint: None = None


class CompletionChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None
    prompt_logprobs: PromptLogprobs = None


class Completion(msgspec.Struct):
    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    object: str = "text_completion"
    system_fingerprint: None = None


def chat_completion(output: RequestOutput, top_logprobs: int, by: Answered) -> ChatCompletion:
    """The answer to a chat. ``top_logprobs`` is how many likeliest tokens were asked for at each place."""
    choices = [_chat_choice(c, top_logprobs, by) for c in output.outputs]
    return ChatCompletion(by.id, by.created, by.model, choices, usage([output]), _prompt_scores(output))


def completion(outputs: Sequence[RequestOutput], by: Answered) -> Completion:
    """The answer to a list of prompts: the choices of the first one come first."""
    pairs = [(output, c) for output in outputs for c in output.outputs]
    choices = [_completion_choice(i, output, c, by) for i, (output, c) in enumerate(pairs)]
    return Completion(by.id, by.created, by.model, choices, usage(outputs))


def usage(outputs: Sequence[RequestOutput]) -> Usage:
    """What the requests read and wrote together."""
    read = sum(len(output.prompt_token_ids) for output in outputs)
    written = sum(len(c.token_ids) for output in outputs for c in output.outputs)
    cached = sum(output.metrics.num_cached_tokens for output in outputs)
    return Usage(read, written, read + written, PromptTokensDetails(cached))


def _chat_choice(c: CompletionOutput, top: int, by: Answered) -> ChatChoice:
    scores = None if c.logprobs is None else chat_logprobs(c.token_ids, c.logprobs, top, by.token_bytes)
    return ChatChoice(c.index, ChatMessage(c.text), scores, c.finish_reason, c.stop_reason)


def _completion_choice(index: int, output: RequestOutput, c: CompletionOutput, by: Answered) -> CompletionChoice:
    scores = None if c.logprobs is None else completion_logprobs(c.token_ids, c.logprobs, by.token_bytes)
    return CompletionChoice(index, c.text, scores, c.finish_reason, c.stop_reason, _prompt_scores(output))


def _prompt_scores(output: RequestOutput) -> PromptLogprobs:
    return None if output.prompt_logprobs is None else prompt_logprobs(output.prompt_logprobs)
