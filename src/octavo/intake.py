"""The door: what a caller gives becomes requests of the core, or is refused with what would have been accepted."""

from __future__ import annotations

import operator
import random
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from octavo.config import ModelConfig
from octavo.core.request import Request, token_array
from octavo.errors import RequestError
from octavo.outputs import RequestMetrics
from octavo.sampling_params import SamplingParams
from octavo.text.bad_words import tokenize_bad_words
from octavo.text.encode import encode_prompt
from octavo.text.tokenizer import Tokenizer

Prompt = str | Sequence[int] | Mapping[str, Any]
"""Text, token ids, or one of these in vLLM's form: ``{"prompt": …}``, ``{"prompt_token_ids": …}``."""

_SEED_MASK = 2**63 - 1


class Intake:
    """Checks prompts and parameters, and makes requests of them. It holds nothing of a request.

    Args:
        tokenizer: None if the model came without one.
        token_limit: longest prompt plus output, in tokens.
        seed: where the seeds of requests without one are drawn from.
    """

    def __init__(self, tokenizer: Tokenizer | None, model_config: ModelConfig, *, token_limit: int, seed: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = model_config.vocab_size
        self._eos_token_ids = model_config.eos_token_ids
        self._token_limit = token_limit
        self._seeds = random.Random(seed)

    def encode(self, prompt: Prompt, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a prompt, which may be token ids already; ``RequestError`` for text without a tokenizer."""
        prompt = unwrap(prompt)
        if not isinstance(prompt, str):
            return as_token_ids(prompt)
        if self._tokenizer is None:
            raise RequestError("the model came without a tokenizer; give the prompt as token ids, or LLM(tokenizer=…)")
        return encode_prompt(self._tokenizer, prompt, self._token_limit, add_special_tokens=add_special_tokens)

    def make_requests(
        self,
        request_id: str,
        token_ids: list[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        salt: str = "",
        share_key: str = "",
    ) -> list[Request]:
        """The ``n`` completions as requests of their own: they share the prompt's blocks through the prefix cache.

        Raises:
            RequestError: a parameter does not suit the model.
        """
        self._check_needs_text(params)
        tokens = self._as_tokens("the prompt", token_ids)
        self._check_token_ids(params)
        base = self._seeds.getrandbits(63) if params.seed is None else params.seed
        room = max(self._token_limit - len(token_ids), 1)
        shared: dict[str, Any] = {
            "max_tokens": room if params.max_tokens is None else params.max_tokens,
            "eos_token_ids": () if params.ignore_eos else self._eos_token_ids,
            "bad_words": self._bad_words(params),
            "priority": as_integer("priority", priority),
            "salt": _as_text("cache_salt", salt).encode("utf-8", "surrogatepass"),
            "share_key": _as_text("share_key", share_key),
        }
        others = params if params.prompt_logprobs is None else replace(params, prompt_logprobs=None)  # once is enough
        return [
            Request(
                id=member_id(request_id, i, params.n),
                tokens=tokens[:],
                params=params if i == 0 else others,
                seed=(base + i) & _SEED_MASK,
                metrics=RequestMetrics(),
                **shared,
            )
            for i in range(params.n)
        ]

    def _check_needs_text(self, params: SamplingParams) -> None:
        if self._tokenizer is None and params.structured_outputs is not None:
            raise RequestError("the model came without a tokenizer; structured_outputs need one: LLM(tokenizer=…)")
        if self._tokenizer is None and (params.stop or params.bad_words):
            raise RequestError("the model came without a tokenizer; use stop_token_ids in place of stop and bad_words")

    def _check_token_ids(self, params: SamplingParams) -> None:
        for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
            self._as_tokens(name, list(getattr(params, name) or ()))

    def _as_tokens(self, name: str, token_ids: list[int]) -> array[int]:
        """The ids of ``name`` as the core keeps them; ``RequestError`` if one is none of the vocabulary."""
        try:
            tokens = token_array(token_ids)
        except (TypeError, OverflowError):
            raise self._refusal(name, token_ids) from None
        if not tokens:
            return tokens
        values = np.frombuffer(tokens, np.int64)
        if values.min() < 0 or values.max() >= self._vocab_size or _has_booleans(token_ids, values):
            raise self._refusal(name, token_ids)
        return tokens

    def _refusal(self, name: str, token_ids: list[Any]) -> RequestError:
        size = self._vocab_size
        wrong = next(token for token in token_ids if type(token) is not int or not 0 <= token < size)
        return RequestError(f"{name} has the token id {wrong!r}; accepted: whole numbers from 0 to {size - 1}")

    def _bad_words(self, params: SamplingParams) -> tuple[tuple[int, ...], ...]:
        """Those that the model can spell: a tokenizer may have more tokens than the model."""
        if self._tokenizer is None or not params.bad_words:
            return ()
        words = tokenize_bad_words(self._tokenizer, params.bad_words)
        return tuple(word for word in words if max(word) < self._vocab_size)


def member_id(request_id: str, index: int, n: int) -> str:
    """The core's name for one of a request's ``n`` completions."""
    return request_id if n == 1 else f"{request_id}/{index}"


def check_params(params: SamplingParams | None) -> SamplingParams:
    """``SamplingParams()`` for None; ``RequestError`` for what is no ``SamplingParams``."""
    if params is None:
        return SamplingParams()
    if not isinstance(params, SamplingParams):
        raise RequestError(f"sampling_params of type {type(params).__name__}; accepted: SamplingParams")
    return params


def check_request_id(request_id: object) -> str:
    """``RequestError`` unless it is a text that is not empty."""
    if not isinstance(request_id, str) or not request_id:
        raise RequestError(f"request_id={request_id!r:.80}; accepted: a text that is not empty")
    return request_id


def unwrap(prompt: Any) -> Any:
    """The text or the token ids of a prompt in the form of a dictionary; other prompts as they are."""
    if not isinstance(prompt, Mapping):
        return prompt
    if len(prompt) == 1 and (name := next(iter(prompt))) in ("prompt", "prompt_token_ids"):
        return prompt[name]
    names = ", ".join(map(str, prompt))
    raise RequestError(f"a prompt with the keys {names[:80]}; accepted: either prompt or prompt_token_ids")


def as_token_ids(prompt: Any) -> list[int]:
    """A sequence of whole numbers (a list, an array or tensor of one dimension) as a list of ``int``.

    What is in it is not checked, but whole numbers of other libraries become ``int``.
    """
    prompt = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    if not isinstance(prompt, Sequence) or isinstance(prompt, str | bytes | bytearray):
        raise RequestError(f"a prompt of type {type(prompt).__name__}; accepted: text, or a list of token ids")
    if operator.countOf(map(type, prompt), int) == len(prompt):  # so it nearly always is
        return list(prompt)
    return [_plain(token) for token in prompt]


def _has_booleans(token_ids: list[Any], values: np.ndarray) -> bool:
    """Whether any of ``token_ids``, whose ``values`` are int64, is a truth value: these have become 0 or 1."""
    return any(isinstance(token_ids[i], bool) for i in np.flatnonzero(values <= 1).tolist())


def as_integer(name: str, value: Any) -> int:
    """``value`` as an ``int``; ``RequestError`` if it is no whole number."""
    value = _plain(value)
    if type(value) is not int:
        raise RequestError(f"{name}={value!r:.80}; accepted: a whole number")
    return value


def _plain(value: Any) -> Any:
    """An ``int`` for a whole number of whichever type; others, and booleans, as they are."""
    if isinstance(value, bool):
        return value
    try:
        return operator.index(value)
    except TypeError:
        return value


def _as_text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{name}={value!r:.80}; accepted: a text")
    return value
