"""From a body to what the engine takes: prompts and sampling parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.openai.errors import FieldError
from octavo.openai.schema import Body, ChatCompletionRequest, CompletionRequest
from octavo.openai.structured import FIELDS as FORMS
from octavo.openai.structured import structured_outputs_of
from octavo.sampling_params import SamplingParams

MAX_COMPLETIONS = 4096
"""Prompts of a body times its ``n``: a line of text must not become a million requests."""

_SAME = (
    *("max_tokens", "temperature", "top_p", "n", "stop", "seed", "presence_penalty", "frequency_penalty", "top_k"),
    *("min_p", "repetition_penalty", "stop_token_ids", "ignore_eos", "min_tokens", "bad_words", "allowed_token_ids"),
    *("include_stop_str_in_output", "skip_special_tokens", "prompt_logprobs"),
)
"""Fields with the names and meanings of ``SamplingParams``."""


def sampling_params(body: Body, defaults: Mapping[str, Any] | None = None) -> SamplingParams:
    """How the body wants to be sampled; ``defaults`` (the model's own) stand in for what it does not say.

    Without a length a chat's answer may be as long as fits, and a completion has 16 tokens, as at OpenAI. A completion
    of no tokens is only its echoed prompt, so the one token that it costs to read that is not shown.

    Raises:
        RequestError: a value is out of range, or two contradict each other.
    """
    given = {name: value for name in _SAME if (value := getattr(body, name)) is not None}
    if body.logit_bias is not None:
        given["logit_bias"] = {_token_id(key): bias for key, bias in body.logit_bias.items()}
    form = structured_outputs_of({name: getattr(body, name) for name in FORMS})
    given |= {} if form is None else {"structured_outputs": form}
    if isinstance(body, ChatCompletionRequest):
        given |= {"max_tokens": _chat_length(body), "logprobs": _chat_logprobs(body)}
    else:
        given |= _echo(body)
    return SamplingParams(**{**(defaults or {}), **given})


def prompts_of(body: CompletionRequest) -> list[str] | list[list[int]]:
    """The prompts, each a text or a list of token ids. Raises ``FieldError`` for a mixture, and for too many."""
    prompts: list[Any] = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    kinds = {type(prompt) for prompt in prompts}
    if len(kinds) != 1:
        raise FieldError("prompt takes a text, a list of token ids, or a list of one of these", "prompt")
    if kinds == {int}:
        return [prompts]
    if len(prompts) * max(body.n or 1, 1) > MAX_COMPLETIONS:
        raise FieldError(f"prompt: at most {MAX_COMPLETIONS} completions of a body are accepted", "prompt")
    return prompts


def check_stream(body: Body) -> None:
    """Raise ``FieldError`` for stream options without a stream, and for what a stream's events have no place for."""
    if body.stream_options is not None and not body.stream:
        raise FieldError("stream_options needs stream to be true", "stream_options")
    if body.prompt_logprobs is not None and body.stream:
        raise FieldError("prompt_logprobs does not go with stream; accepted: one of the two", "prompt_logprobs")


def check_unforced(body: ChatCompletionRequest) -> None:
    """Raise ``FieldError`` if the answer must be a tool call, for callers that cannot force one."""
    if body.tool_choice not in (None, "auto", "none"):
        raise FieldError("tool_choice can be 'auto' or 'none'; calls cannot be forced", "tool_choice")


def template_options(body: ChatCompletionRequest) -> dict[str, Any]:
    """What the chat template gets besides the messages."""
    return {
        "tools": None if body.tool_choice == "none" else body.tools,
        "add_generation_prompt": body.add_generation_prompt is not False,
        "continue_final_message": body.continue_final_message is True,
        "chat_template_kwargs": body.chat_template_kwargs,
    }


def _echo(body: CompletionRequest) -> dict[str, Any]:
    if not body.echo:
        return {"logprobs": body.logprobs}
    scores = body.logprobs if body.prompt_logprobs is None else max(body.prompt_logprobs, body.logprobs or 0)
    length = {"max_tokens": 1} if body.max_tokens == 0 else {}
    return {"logprobs": body.logprobs, "prompt_logprobs": scores, **length}


def _token_id(key: str) -> int:
    if not (key.isascii() and key.isdecimal() and len(key) < 12):
        raise FieldError(f"logit_bias has the key {key!r:.40}; accepted: token ids", "logit_bias")
    return int(key)


def _chat_length(body: ChatCompletionRequest) -> int | None:
    old, new = body.max_tokens, body.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise FieldError(
            f"max_tokens={old} and max_completion_tokens={new} contradict each other; give one", "max_tokens"
        )
    return old if new is None else new


def _chat_logprobs(body: ChatCompletionRequest) -> int | None:
    if body.top_logprobs is not None and not body.logprobs:
        raise FieldError("top_logprobs needs logprobs to be true", "top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None
