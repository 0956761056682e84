"""What one way of computing said, token by token, and how far two ways are from each other."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from octavo.engine import Engine
from octavo.outputs import Logprobs, RequestOutput
from octavo.sampling_params import SamplingParams

TOP = 20
"""Log-probabilities that are recorded at each position: of the likeliest tokens."""

Scores = dict[int, float]
"""Token id -> log-probability."""


@dataclass(frozen=True, slots=True)
class Trace:
    """One request.

    Attributes:
        tokens: what was chosen, greedily.
        scores: at each of these positions.
        prompt_scores: at each position of the prompt but the first, if that was asked for.
        cached: prompt tokens that were found in the prefix cache.
        given: the text was given, so that ``tokens`` are what would have been chosen at each of its positions.
        failed: the request ended with an error.
    """

    tokens: list[int]
    scores: list[Scores]
    prompt_scores: list[Scores]
    cached: int = 0
    given: bool = False
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Difference:
    """Between two traces, or lists of them.

    Attributes:
        largest: of the differences between log-probabilities of the same token after the same tokens; infinite for a
            NaN, and where a side failed on the way.
        mean: of the absolute differences at the tokens of the first trace; infinite if there is none.
        agreeing, compared: positions where both chose the same token, of those that can be compared: all, if a text
            was given; else all until the two texts part.
        spread: between the likeliest and the least likely recorded log-probability.
    """

    largest: float = 0.0
    mean: float = 0.0
    agreeing: int = 0
    compared: int = 0
    spread: float = 0.0


def run(
    engine: Engine,
    prompts: Sequence[list[int]],
    max_tokens: int,
    *,
    together: bool = False,
    prompt_scores: bool = False,
) -> list[Trace]:
    """Continue prompts greedily, one after the other or all at once."""
    params = SamplingParams(
        temperature=0,
        max_tokens=max_tokens,
        ignore_eos=True,
        logprobs=min(TOP, engine.model_config.vocab_size),
        prompt_logprobs=min(TOP, engine.model_config.vocab_size) if prompt_scores else None,
        detokenize=False,
    )
    done: dict[str, RequestOutput] = {}
    ids: list[str] = []
    for prompt in prompts:
        ids.append(engine.add_request(prompt, params))
        if not together:
            _finish(engine, done)
    _finish(engine, done)
    return [as_trace(done[request_id]) for request_id in ids]


def follow(engine: Engine, prompts: Sequence[list[int]], texts: Sequence[Trace]) -> list[Trace]:
    """What ``engine`` says at each position of these prompts and of the texts that another wrote behind them, which are
    given to it as one prompt.
    """
    whole = [[*prompt, *text.tokens[:-1]] for prompt, text in zip(prompts, texts, strict=True)]
    traces = run(engine, whole, 1, prompt_scores=True)
    return [_split(trace, len(prompt)) for prompt, trace in zip(prompts, traces, strict=True)]


def _split(trace: Trace, length: int) -> Trace:
    """A trace of a text that was given, as if all behind the first ``length`` tokens had been chosen."""
    scores = [*trace.prompt_scores[length - 1 :], *trace.scores]
    tokens = [max(entry, key=entry.__getitem__) for entry in scores]
    return Trace(tokens, scores, trace.prompt_scores[: length - 1], given=True, failed=trace.failed)


def as_trace(output: RequestOutput) -> Trace:
    completion = output.outputs[0]
    return Trace(
        list(completion.token_ids),
        [_plain(entry) for entry in completion.logprobs or ()],
        [_plain(entry) for entry in output.prompt_logprobs or () if entry is not None],
        output.metrics.num_cached_tokens,
        failed=completion.finish_reason == "error",
    )


def difference(a: Sequence[Trace], b: Sequence[Trace]) -> Difference:
    """Compare the traces of the same requests."""
    gaps: list[float] = []
    at_tokens: list[float] = []
    spread, agreeing, compared = 0.0, 0, 0
    for one, other in zip(a, b, strict=True):
        alike = _comparable(one, other)
        agreeing += sum(x == y for x, y in zip(one.tokens[:alike], other.tokens[:alike], strict=True))
        compared += alike
        written = list(zip(one.scores[:alike], other.scores[:alike], strict=False))
        positions = [*zip(one.prompt_scores, other.prompt_scores, strict=False), *written]
        gaps += [gap(x, y) for x, y in positions]
        if one.failed or other.failed or len(one.tokens) != len(other.tokens):
            gaps.append(math.inf)
        at_tokens += [abs(_at(x, t) - _at(y, t)) for (x, y), t in zip(written, one.tokens, strict=False)]
        spread = max([spread, *(max(x.values()) - _floor(x) for x, _ in positions)])
    mean = math.fsum(at_tokens) / len(at_tokens) if at_tokens else math.inf
    return Difference(max(gaps, default=0.0), mean, agreeing, compared, spread)


def gap(a: Scores, b: Scores) -> float:
    """The largest difference at one position. Of a token that only one side has among its likeliest, the other's score
    is known to be at most that of its least likely one.
    """
    worst = 0.0
    for x, y in ((a, b), (b, a)):
        floor = _floor(y)
        for token, score in x.items():
            found = abs(score - y[token]) if token in y else max(0.0, score - floor)
            if math.isnan(score) or math.isnan(found):
                return math.inf
            worst = max(worst, found)
    return worst


def _finish(engine: Engine, done: dict[str, RequestOutput]) -> None:
    while engine.has_unfinished_requests():
        done.update((output.request_id, output) for output in engine.step() if output.finished)


def _plain(entry: Logprobs) -> Scores:
    return {token: value.logprob for token, value in entry.items()}


def _comparable(a: Trace, b: Trace) -> int:
    """How many positions follow on the same tokens: all of a text that was given, else up to the first difference."""
    shorter = min(len(a.tokens), len(b.tokens))
    if a.given or b.given:
        return shorter
    pairs = zip(a.tokens, b.tokens, strict=False)
    return next((i + 1 for i, (x, y) in enumerate(pairs) if x != y), shorter)


def _floor(scores: Scores) -> float:
    """The least of the ``TOP`` likeliest: a token of a prompt is there beside them, however unlikely it is."""
    return heapq.nlargest(TOP, scores.values())[-1]


def _at(scores: Scores, token: int) -> float:
    return scores[token] if token in scores else _floor(scores)
