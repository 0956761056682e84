"""The bodies of ``/v1/chat/completions`` and ``/v1/completions``, with vLLM's additional sampling fields.

A field that would change the answer and is not supported is refused by name: an answer that silently ignores half
of a request is worse than none. null is the same as leaving a field out.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from octavo.errors import nearest
from octavo.openai.errors import FieldError

IGNORED = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier"),
        *("prompt_cache_key", "prompt_cache_retention"),
    }
)
"""Fields that say who asks, and how to bill and keep it, but not what to answer."""

UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "stream": (False,),
    "stream_options": (),
    "response_format": ({"type": "text"},),
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
    "parallel_tool_calls": (True,),
    "functions": ([],),
    "function_call": ("none",),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
    "continue_final_message": (False,),
}
"""Known fields that are not supported -> the values that ask for nothing."""


class SamplingFields(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What both bodies have in common. Ranges are checked by ``SamplingParams``, here only types are."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    prompt_logprobs: int | None = None
    priority: int | None = None


class ChatCompletionRequest(SamplingFields, kw_only=True):
    """The body of ``/v1/chat/completions``. ``tools`` go to the chat template; calls are not parsed from the answer."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionRequest(SamplingFields, kw_only=True):
    """The body of ``/v1/completions``. ``prompt`` is one text, one list of token ids, or a list of either."""

    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None


Body = ChatCompletionRequest | CompletionRequest
B = TypeVar("B", bound=Body)


def decode_body(data: bytes | msgspec.Raw, kind: type[B]) -> B:
    """Read a body from JSON.

    Raises:
        FieldError: it is not JSON, or a field is missing, unknown, not supported or of another type.
    """
    try:
        fields = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise FieldError(f"the body is not a JSON object: {error}") from None
    return convert_body(fields, kind)


def convert_body(fields: dict[str, Any], kind: type[B]) -> B:
    """The body that decoded JSON stands for. Raises ``FieldError`` as `decode_body` does."""
    wanted = {name: v for name, v in fields.items() if v is not None and name not in IGNORED}
    _refuse_unsupported(wanted)
    known = kind.__struct_fields__
    for name in wanted:
        if name not in known and name not in UNSUPPORTED:
            raise FieldError(f"there is no field {name!r}{nearest(name, known)}", name, "unknown_parameter")
    try:
        return msgspec.convert({name: v for name, v in wanted.items() if name in known}, kind)
    except msgspec.ValidationError as error:
        raise _explain(str(error)) from None


def _refuse_unsupported(fields: dict[str, Any]) -> None:
    for name, neutral in UNSUPPORTED.items():
        if name in fields and fields[name] not in neutral:
            raise FieldError(f"{name} is not supported; leave it out", name, "unsupported_parameter")


def _explain(message: str) -> FieldError:
    """msgspec says "Expected `int`, got `str` - at `$.n`": name the field first."""
    found = re.fullmatch(r"(.*) - at `\$\.?(.*)`", message)
    if found is None:
        missing = re.fullmatch(r"Object missing required field `(.*)`", message)
        return FieldError(f"{missing[1]} is missing" if missing else message, missing[1] if missing else None)
    what, place = found[1][:1].lower() + found[1][1:], found[2]
    return FieldError(f"{place}: {what.replace('`', '')}", re.split(r"[.\[]", place)[0] or None)
