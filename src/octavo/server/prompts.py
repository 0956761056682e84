"""From bodies to the token ids of their prompts: the part of a request that runs beside the event loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from octavo.errors import RequestError
from octavo.openai.errors import FieldError
from octavo.openai.requests import prompts_of
from octavo.openai.schema import CompletionRequest
from octavo.server.state import Server
from octavo.text.chat import render_chat
from octavo.text.encode import encode_prompt
from octavo.text.fim import encode_fill


def render(server: Server, messages: Sequence[Mapping[str, Any]], template: str | None, **options: Any) -> str:
    """The text of a chat, by the request's template, the server's or the model's."""
    tokenizer = server.need_tokenizer()
    template = template or server.options.chat_template or tokenizer.chat_template
    if template is None:
        raise RequestError("this model has no chat template; use /v1/completions, or serve it with a chat template")
    return render_chat(template, messages, bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token, **options)


def check_template(server: Server, template: str | None) -> str | None:
    """The request's own template, if that is allowed. Raises ``FieldError``."""
    if template is not None and not server.options.trust_request_chat_template:
        message = "chat_template is not accepted from requests here; leave it out, or use --trust-request-chat-template"
        raise FieldError(message, "chat_template")
    return template


LIGHT_TEXT, LIGHT_IDS = 512, 16384
"""Characters, and token ids, that are read sooner than they are handed to a thread: some tenths of a millisecond."""


def are_light(body: CompletionRequest) -> bool:
    """Whether `completion_prompts` is quick enough for the event loop."""
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    texts = len(body.suffix or "") + sum(len(prompt) for prompt in prompts if isinstance(prompt, str))
    ids = sum(len(prompt) if isinstance(prompt, list) else 1 for prompt in prompts)
    return texts <= LIGHT_TEXT and ids <= LIGHT_IDS


def completion_prompts(server: Server, body: CompletionRequest) -> list[list[int]]:
    """The prompts of a completion."""
    special = body.add_special_tokens is not False
    return [
        truncate(_completion_prompt(server, prompt, body.suffix, special), body.truncate_prompt_tokens)
        for prompt in prompts_of(body)
    ]


def encode(server: Server, prompt: str | Sequence[int], special: bool) -> list[int]:
    """Token ids of a text; token ids as they are, once it is known that the model has them."""
    if isinstance(prompt, str):
        limit = server.client.info.token_limit
        return encode_prompt(server.need_tokenizer(), prompt, limit, add_special_tokens=special)
    return check_ids(server, prompt)


def check_ids(server: Server, ids: Sequence[int]) -> list[int]:
    """Raises ``RequestError`` for an id outside the vocabulary, and for none at all."""
    size = server.client.info.vocab_size
    if not ids:
        raise RequestError("the prompt is empty; at least one token is needed")
    if min(ids) < 0 or max(ids) >= size:
        wrong = next(i for i in ids if not 0 <= i < size)
        raise RequestError(f"the prompt has the token id {wrong}; accepted: whole numbers from 0 to {size - 1}")
    return list(ids)


def truncate(ids: list[int], length: int | None) -> list[int]:
    """The last ``length`` tokens. Raises ``FieldError`` unless at least one is asked for."""
    if length is None:
        return ids
    if length < 1:
        raise FieldError(f"truncate_prompt_tokens={length}; accepted: at least 1", "truncate_prompt_tokens")
    return ids[-length:]


def _completion_prompt(server: Server, prompt: str | list[int], suffix: str | None, special: bool) -> list[int]:
    if not suffix:
        return encode(server, prompt, special)
    if not isinstance(prompt, str):
        raise FieldError("suffix goes with a prompt of text; this one is token ids", "suffix")
    return encode_fill(server.need_tokenizer(), prompt, suffix, add_special_tokens=special)
