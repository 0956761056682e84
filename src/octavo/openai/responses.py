"""From finished requests to the bodies of ``chat.completion`` and ``text_completion``.

``stop_reason``, ``prompt_logprobs`` and the token ids are vLLM's additions; ``metrics`` is our own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from octavo.openai.logprobs import (
    ChatLogprobs,
    CompletionLogprobs,
    TokenBytes,
    chat_logprobs,
    completion_logprobs,
    prompt_logprobs,
)
from octavo.openai.metrics import Metrics, metrics_of
from octavo.openai.spoken import ChatMessage, Spoken, chat_finish, message
from octavo.outputs import CompletionOutput, Logprobs, RequestOutput

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


@dataclass(frozen=True, slots=True)
class Extras:
    """What an answer shall have besides.

    Attributes:
        echo: for each prompt its text, which comes before that of its completions; None: no echo.
        token_ids: those of prompts and completions, too.
        told_apart: what a chat's completion, of this text, says.
    """

    echo: Sequence[str] | None = None
    token_ids: bool = False
    told_apart: Callable[[str], Spoken] = lambda text: Spoken("", text, [])


NO_EXTRAS = Extras()


class ChatChoice(msgspec.Struct):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(msgspec.Struct):
    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    metrics: Metrics
    prompt_logprobs: PromptLogprobs = None
    prompt_token_ids: list[int] | UnsetType = UNSET
    object: str = "chat.completion"
    system_fingerprint: None = None


class CompletionChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None
    prompt_logprobs: PromptLogprobs = None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class Completion(msgspec.Struct):
    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    metrics: Metrics
    object: str = "text_completion"
    system_fingerprint: None = None


def chat_completion(
    output: RequestOutput, top_logprobs: int, by: Answered, extras: Extras = NO_EXTRAS
) -> ChatCompletion:
    """The answer to a chat. ``top_logprobs`` is how many likeliest tokens were asked for at each place."""
    choices = [_chat_choice(c, top_logprobs, by, extras) for c in output.outputs]
    body = ChatCompletion(
        by.id, by.created, by.model, choices, usage([output]), metrics_of([output]), _prompt_scores(output)
    )
    if extras.token_ids:
        body.prompt_token_ids = output.prompt_token_ids
    return body


def completion(outputs: Sequence[RequestOutput], by: Answered, extras: Extras = NO_EXTRAS) -> Completion:
    """The answer to a list of prompts: the choices of the first one come first."""
    places = [(p, output, c) for p, output in enumerate(outputs) for c in output.outputs]
    choices = [_completion_choice(i, place, by, extras) for i, place in enumerate(places)]
    return Completion(by.id, by.created, by.model, choices, usage(outputs), metrics_of(outputs))


def usage(outputs: Sequence[RequestOutput]) -> Usage:
    """What the requests read and wrote together."""
    read = sum(len(output.prompt_token_ids) for output in outputs)
    written = sum(len(c.token_ids) for output in outputs for c in output.outputs)
    cached = sum(output.metrics.num_cached_tokens for output in outputs)
    return used(read, written, cached)


def used(read: int, written: int, cached: int) -> Usage:
    return Usage(read, written, read + written, PromptTokensDetails(cached))


def _chat_choice(c: CompletionOutput, top: int, by: Answered, extras: Extras) -> ChatChoice:
    scores = None if c.logprobs is None else chat_logprobs(c.token_ids, c.logprobs, top, by.token_bytes)
    said = extras.told_apart(c.text)
    reason = chat_finish(c.finish_reason, bool(said.calls))
    choice = ChatChoice(c.index, message(said), scores, reason, c.stop_reason)
    if extras.token_ids:
        choice.token_ids = c.token_ids
    return choice


def _completion_choice(
    index: int, place: tuple[int, RequestOutput, CompletionOutput], by: Answered, extras: Extras
) -> CompletionChoice:
    prompt, output, c = place
    text, scores = c.text, _completion_scores(output, c, by, extras)
    if extras.echo is not None:
        text = extras.echo[prompt] + c.text
    choice = CompletionChoice(index, text, scores, c.finish_reason, c.stop_reason, _prompt_scores(output))
    if extras.token_ids:
        choice.token_ids, choice.prompt_token_ids = c.token_ids, output.prompt_token_ids
    return choice


def _completion_scores(
    output: RequestOutput, c: CompletionOutput, by: Answered, extras: Extras
) -> CompletionLogprobs | None:
    if c.logprobs is None:
        return None
    ids, scores = list(c.token_ids), list[Logprobs | None](c.logprobs)
    if extras.echo is not None:
        ids, scores = [*output.prompt_token_ids, *ids], [*(output.prompt_logprobs or []), *scores]
    return completion_logprobs(ids, scores, by.token_bytes)


def _prompt_scores(output: RequestOutput) -> PromptLogprobs:
    return None if output.prompt_logprobs is None else prompt_logprobs(output.prompt_logprobs)
