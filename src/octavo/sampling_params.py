"""How a request wants its tokens chosen. Names and meanings follow vLLM's ``SamplingParams``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from octavo.errors import RequestError, reject_unknown
from octavo.structured_outputs import StructuredOutputs

MAX_LOGPROBS = 1000
MAX_ENTRIES = 1 << 19
"""Of a list or dictionary of token ids: more than any vocabulary has, and few enough to be looked at in no time."""

MAX_STOP_STRINGS = 64


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Sampling options of one request.

    Attributes:
        n: how many completions to make of the prompt.
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_k: keep the k likeliest tokens; 0 or -1 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches this, in (0, 1].
        min_p: drop tokens less likely than this share of the likeliest one, in [0, 1].
        repetition_penalty: divides (positive) or multiplies (negative) the logits of tokens that stand in the prompt or
            the output (CTRL, arXiv:1909.05858); 1 is off.
        presence_penalty, frequency_penalty: subtracted once, and once for each occurrence, for tokens in the output.
        logit_bias: token id -> number added to its logit.
        allowed_token_ids: only these may be sampled.
        bad_words: strings that may not be produced.
        seed: the same seed draws the same tokens from the same logits, whatever else is in the batch; a GPU and a CPU
            draw different ones from the same distribution. None draws a seed from the engine's.
        max_tokens: at most so many output tokens; None: as many as fit. A request is refused if its prompt and this
            many tokens are longer than the engine allows (vLLM cuts it short).
        min_tokens: no stop of any kind before so many output tokens.
        stop: strings that end the completion; they are not part of the text unless ``include_stop_str_in_output``.
        stop_token_ids: token ids that end the completion, besides the model's own EOS ids.
        ignore_eos: go on after the model's EOS.
        logprobs: with each output token, the log-probability of it and of this many likeliest ones, of the raw logits.
        prompt_logprobs: the same for each prompt token.
        detokenize: False leaves ``text`` empty.
        skip_special_tokens: leave special tokens out of the text.
        structured_outputs: the form that the completion must have; a dictionary becomes a ``StructuredOutputs``.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] = field(default_factory=list)
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: str | list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    structured_outputs: StructuredOutputs | None = None

    def __new__(cls, *args: Any, **kwargs: Any) -> SamplingParams:
        reject_unknown("SamplingParams", kwargs, (f.name for f in fields(cls)))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        self._normalise()
        self._check_numbers()
        self._check_tokens()
        self._check_strings()

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def _normalise(self) -> None:
        """Bring what may be given in several forms into one: lists, and Python's own numbers for numpy's."""
        set_ = object.__setattr__
        set_(self, "stop", [self.stop] if isinstance(self.stop, str) else _list("stop", self.stop))
        set_(self, "bad_words", _list("bad_words", self.bad_words))
        set_(self, "stop_token_ids", _list("stop_token_ids", self.stop_token_ids))
        if self.allowed_token_ids is not None:
            set_(self, "allowed_token_ids", _list("allowed_token_ids", self.allowed_token_ids))
        if self.logit_bias is not None:
            set_(self, "logit_bias", _plain_dict("logit_bias", self.logit_bias))
        for name in (*_INTEGERS, *_NUMBERS):
            set_(self, name, _plain(getattr(self, name)))
        if self.top_k == -1:
            set_(self, "top_k", 0)
        set_(self, "structured_outputs", _structured_outputs(self.structured_outputs))

    def _check_numbers(self) -> None:
        _number("temperature", self.temperature, 0, 100)
        _number("top_p", self.top_p, 0, 1, low_open=True)
        _number("min_p", self.min_p, 0, 1)
        _number("repetition_penalty", self.repetition_penalty, 0, 100, low_open=True)
        _number("presence_penalty", self.presence_penalty, -2, 2)
        _number("frequency_penalty", self.frequency_penalty, -2, 2)
        _integer("n", self.n, 1, 256)
        _integer("top_k", self.top_k, 0, 2**31 - 1)
        _integer("seed", self.seed, -(2**63), 2**63 - 1, optional=True)
        _integer("max_tokens", self.max_tokens, 1, 2**31 - 1, optional=True)
        _integer("min_tokens", self.min_tokens, 0, 2**31 - 1)
        _integer("logprobs", self.logprobs, 0, MAX_LOGPROBS, optional=True)
        _integer("prompt_logprobs", self.prompt_logprobs, 0, MAX_LOGPROBS, optional=True)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(f"min_tokens={self.min_tokens} is more than max_tokens={self.max_tokens}")

    def _check_tokens(self) -> None:
        for name in ("stop_token_ids", "allowed_token_ids"):
            for token in getattr(self, name) or []:
                _integer(f"a token id in {name}", token, 0, 2**31 - 1)
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise RequestError("allowed_token_ids is empty; name at least one token id, or leave it out")
        for token, bias in (self.logit_bias or {}).items():
            _integer("a token id in logit_bias", token, 0, 2**31 - 1)
            _number(f"logit_bias[{token}]", bias, -100, 100)

    def _check_strings(self) -> None:
        for name in ("stop", "bad_words"):
            strings = getattr(self, name)
            if any(not isinstance(s, str) or not s for s in strings):
                raise RequestError(f"{name} takes non-empty strings")
            if len(strings) > MAX_STOP_STRINGS:
                raise RequestError(f"{name} has {len(strings)} strings; at most {MAX_STOP_STRINGS} are accepted")
        if self.stop and not self.detokenize:
            raise RequestError("stop strings need detokenize=True; use stop_token_ids instead")


@dataclass(frozen=True, kw_only=True)
class PoolingParams(SamplingParams):
    """Asks for one vector of the whole prompt instead of a completion: the hidden state of its last token after the
    final norm, of length 1. What the one token is that such a request also has, does not matter.
    """

    temperature: float = 0.0
    max_tokens: int | None = 1
    ignore_eos: bool = True
    detokenize: bool = False


_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
_INTEGERS = ("n", "top_k", "seed", "max_tokens", "min_tokens", "logprobs", "prompt_logprobs")


def _plain(value: Any) -> Any:
    """Python's own number for a number of another type, such as numpy's; anything else as it is."""
    if isinstance(value, bool | int | float) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def _list(name: str, value: Any) -> list[Any]:
    """The list of what a list, tuple, set or array holds; empty for None. Raises ``RequestError`` for all else."""
    if value is None:
        return []
    value = value.tolist() if hasattr(value, "tolist") else value
    _check_size(name, value)
    if not isinstance(value, list | tuple | set | frozenset):
        raise RequestError(f"{name}={value!r:.80}; accepted: a list")
    return [_plain(item) for item in value]


def _plain_dict(name: str, value: Any) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise RequestError(f"{name}={value!r:.80}; accepted: a dictionary of token ids and numbers")
    _check_size(name, value)
    return {_plain(token): _plain(number) for token, number in value.items()}


def _check_size(name: str, value: Any) -> None:
    if hasattr(value, "__len__") and len(value) > MAX_ENTRIES:
        raise RequestError(f"{name} has {len(value)} entries; at most {MAX_ENTRIES} are accepted")


def _structured_outputs(value: Any) -> StructuredOutputs | None:
    if value is None or isinstance(value, StructuredOutputs):
        return value
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return StructuredOutputs(**value)
    raise RequestError(
        f"structured_outputs={value!r:.80}; accepted: a StructuredOutputs, or a dictionary of its fields"
    )


def _number(name: str, value: Any, low: float, high: float, *, low_open: bool = False) -> None:
    """Raise ``RequestError`` unless ``value`` is a finite number in [low, high] (or (low, high])."""
    ok = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high  # false for a NaN
    if not ok or (low_open and value == low):
        raise RequestError(
            f"{name}={value!r:.80} is out of range; accepted: {'above' if low_open else 'from'} {low} to {high}"
        )


def _integer(name: str, value: Any, low: int, high: int, *, optional: bool = False) -> None:
    """Raise ``RequestError`` unless ``value`` is an integer in [low, high], or None where that is allowed."""
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        none = " or None" if optional else ""
        raise RequestError(f"{name}={value!r} is out of range; accepted: a whole number from {low} to {high}{none}")
