"""Perplexity: the exponential of the mean negative log-probability of a text's tokens.

A text longer than the context is read through windows. Each window begins ``stride`` tokens after the one before it,
and only tokens that no earlier window has scored count, so that every token but the first is scored once, and (after
the first window) with at least ``context - stride`` tokens before it. A small stride is slow and just; ``stride`` equal
to the context is fast and gives the first tokens of each window little to go by.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.engine import Engine
from octavo.errors import RequestError, UsageError
from octavo.outputs import RequestOutput
from octavo.sampling_params import SamplingParams

LARGEST_CONTEXT = 2048
"""Tokens of a window, unless asked for: enough for figures to be compared, and quick."""


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens ``begin`` to ``end - 1`` of a text, of which those from ``first`` on are scored."""

    begin: int
    end: int
    first: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    """What was measured.

    Attributes:
        perplexity: of the tokens.
        nats_per_token: its logarithm.
        bits_per_byte: of the text in UTF-8: to compare models with different tokenizers.
        tokens: that were scored; the first of a text is not.
        bytes: of the text, as far as it was read.
        computed: tokens that went through the model: in windows that overlap, more than once.
    """

    perplexity: float
    nats_per_token: float
    bits_per_byte: float
    tokens: int
    bytes: int
    computed: int
    windows: int
    context: int
    stride: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.computed / self.seconds


def plan_windows(length: int, context: int, stride: int) -> list[Window]:
    """The windows over ``length`` tokens; together they score tokens 1 to ``length - 1``, each once.

    Raises:
        UsageError: there is nothing to score, or windows leave gaps.
    """
    if length < 2:
        raise UsageError(f"the text has {length} tokens; accepted: 2 and more, as nothing predicts the first")
    if context < 2 or not 1 <= stride < context + 1:
        raise UsageError(f"windows of {context} tokens, {stride} apart; accepted: a stride from 1 to the context")
    windows, scored = [], 1
    for begin in range(0, length, min(stride, context - 1)):
        end = min(begin + context, length)
        windows.append(Window(begin, end, scored))
        scored = end
        if end == length:
            break
    return windows


def measure(
    engine: Engine,
    text: str,
    *,
    context: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    check: Callable[[], None] = lambda: None,
    on_progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Perplexity:
    """Perplexity of ``text``, which is tokenized as a prompt is: with BOS, if the model wants it.

    Args:
        context: tokens of a window; None: what the engine allows, at most ``LARGEST_CONTEXT``.
        stride: from window to window; None: half the context.
        limit: only so many tokens of the text; None: all.
        check: called between steps; may raise.
        on_progress: called with the scored tokens so far, and of how many.

    Raises:
        UsageError: the windows are not possible. RequestError: the model has no tokenizer.
    """
    largest = engine.ledger.max_model_len - 1  # a request has room for one token of output
    context = min(largest, LARGEST_CONTEXT) if context is None else context
    if context > largest:
        raise UsageError(f"windows of {context} tokens; accepted: up to {largest}")
    stride = max(1, context // 2) if stride is None else stride
    if engine.tokenizer is None:
        raise RequestError("the model came without a tokenizer, so a text cannot be scored")
    token_ids = engine.tokenizer.encode(text)  # not the engine's own way, which refuses what no request can hold
    if limit is not None and limit < len(token_ids):
        token_ids = token_ids[:limit]
        text = engine.tokenizer.decode(token_ids)
    windows = plan_windows(len(token_ids), context, stride)
    begin = time.monotonic()
    total, tokens = 0.0, 0
    for scores in _scores(engine, token_ids, windows, check):
        total += math.fsum(scores)
        tokens += len(scores)
        on_progress(tokens, len(token_ids) - 1)
    seconds = time.monotonic() - begin
    size = max(1, len(text.encode()))  # special tokens have none
    return Perplexity(
        perplexity=_exponential(-total / tokens),
        nats_per_token=-total / tokens,
        bits_per_byte=-total / math.log(2) / size,
        tokens=tokens,
        bytes=size,
        computed=sum(window.end - window.begin for window in windows),
        windows=len(windows),
        context=context,
        stride=stride,
        seconds=seconds,
    )


def _scores(
    engine: Engine, token_ids: Sequence[int], windows: Sequence[Window], check: Callable[[], None]
) -> Iterator[list[float]]:
    """Log-probabilities of the tokens that each window scores, as windows are done; the engine batches them."""
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    waiting = iter(windows)
    running: dict[str, Window] = {}
    try:
        while True:
            for window in waiting:
                running[engine.add_request(list(token_ids[window.begin : window.end]), params)] = window
                if len(running) >= engine.config.max_num_seqs:
                    break
            if not running:
                return
            for output in engine.step():
                if output.finished:
                    yield _scored(output, running.pop(output.request_id))
            check()
    finally:
        for request_id in running:
            engine.abort(request_id)


def _scored(output: RequestOutput, window: Window) -> list[float]:
    if output.prompt_logprobs is None or output.outputs[0].finish_reason == "error":
        raise RequestError(f"the model failed: {output.outputs[0].stop_reason}")
    found = []
    for position in range(max(window.first - window.begin, 1), window.end - window.begin):
        entry = output.prompt_logprobs[position]
        assert entry is not None  # all but the first have one
        found.append(entry[output.prompt_token_ids[position]].logprob)
    if any(map(math.isnan, found)):
        raise RequestError("the model failed: a log-probability is not a number")
    return found


def _exponential(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf
