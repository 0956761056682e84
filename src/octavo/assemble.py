"""From the core's events to what the caller gets: text, log-probabilities, finish reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from octavo.core.plan import Embedded, Event, Finished, PromptScored, Sampled
from octavo.core.request import Request
from octavo.outputs import CompletionOutput, Logprobs, RequestMetrics, RequestOutput
from octavo.sampling_params import SamplingParams
from octavo.text.detokenizer import IncrementalDetokenizer
from octavo.text.stop import StopMatcher
from octavo.text.tokenizer import Tokenizer

_NEWS = (Sampled, PromptScored, Embedded, Finished)
"""Events that change what the caller sees."""


@dataclass(slots=True)
class Completion:
    """One of a request's completions while it grows: its output, and what turns tokens into text."""

    request: Request
    output: CompletionOutput
    detokenizer: IncrementalDetokenizer | None
    stops: StopMatcher | None
    matched: str | None = None

    def take(self, sampled: Sampled, *, show: bool, tokenizer: Tokenizer | None) -> None:
        """Add a token, which ``show`` says is part of the text. Sets ``matched`` if it completes a stop string."""
        self.output.token_ids.append(sampled.token_id)
        if sampled.logprobs is not None:
            self._take_logprobs(sampled.token_id, sampled.logprobs, tokenizer)
        if self.detokenizer is not None and show:
            self._take_text(self.detokenizer.append([sampled.token_id]))

    def finish(self, reason: str, stop_reason: str | int | None) -> None:
        """Add the text that was held back, and say why it ended: a stop string comes before all other reasons."""
        if self.detokenizer is not None and self.matched is None:
            self._take_text(self.detokenizer.finish())
        if self.stops is not None and self.matched is None:
            self.output.text += self.stops.flush()
        if self.matched is not None:
            reason, stop_reason = "stop", self.matched
        self.output.finish_reason, self.output.stop_reason = reason, stop_reason

    def _take_text(self, piece: str) -> None:
        text = piece
        if self.stops is not None:
            active = len(self.output.token_ids) >= self.request.params.min_tokens
            text, self.matched = self.stops.feed(piece, active=active)
        self.output.text += text

    def _take_logprobs(self, token_id: int, logprobs: Logprobs, tokenizer: Tokenizer | None) -> None:
        output = self.output
        if output.logprobs is None:
            output.logprobs, output.cumulative_logprob = [], 0.0
        output.logprobs.append(name_tokens(logprobs, tokenizer))
        output.cumulative_logprob = (output.cumulative_logprob or 0.0) + logprobs[token_id].logprob


def name_tokens(logprobs: Logprobs, tokenizer: Tokenizer | None) -> Logprobs:
    """Fill in ``decoded_token`` of each entry, if there is a tokenizer."""
    if tokenizer is not None:
        for token_id, entry in logprobs.items():
            entry.decoded_token = tokenizer.decode([token_id], skip_special_tokens=False)
    return logprobs


@dataclass(slots=True)
class Group:
    """One request of the caller: its prompt and its ``n`` completions."""

    output: RequestOutput
    completions: list[Completion]
    num_unfinished: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_unfinished = len(self.completions)


class Assembler:
    """Keeps one `Group` for each unfinished request and applies the core's events to it."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._groups: dict[str, Group] = {}
        self._members: dict[str, tuple[Group, Completion]] = {}

    def __len__(self) -> int:
        return len(self._groups)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._groups

    def ids(self) -> list[str]:
        return list(self._groups)

    def output(self, request_id: str) -> RequestOutput | None:
        """The output, alive, of a request that is not finished; None for an unknown one."""
        group = self._groups.get(request_id)
        return group.output if group else None

    def member_ids(self, request_id: str) -> list[str]:
        """The core's ids of the request's completions that are not finished; none for an unknown request."""
        group = self._groups.get(request_id)
        return [c.request.id for c in group.completions if not c.output.finished] if group else []

    def add(self, request_id: str, prompt: str | None, prompt_ids: list[int], requests: Sequence[Request]) -> None:
        """Expect events for ``requests``, the completions of one prompt. Their arrival must have been noted already.

        ``prompt_ids`` become part of the output.
        """
        first = requests[0]
        output = RequestOutput(request_id, prompt, prompt_ids, [], False, replace(first.metrics))
        if first.params.prompt_logprobs is not None:
            output.prompt_logprobs = [None] * len(prompt_ids)
        completions = [self._completion(i, request, prompt_ids) for i, request in enumerate(requests)]
        output.outputs = [c.output for c in completions]
        group = Group(output, completions)
        self._groups[request_id] = group
        self._members |= {c.request.id: (group, c) for c in completions}

    def forget(self, request_id: str) -> None:
        """Expect nothing more for a request; no output of it is finished."""
        group = self._groups.pop(request_id, None)
        for completion in group.completions if group else ():
            self._members.pop(completion.request.id, None)

    def _completion(self, index: int, request: Request, prompt_ids: list[int]) -> Completion:
        params = request.params
        output = CompletionOutput(index)
        if not params.detokenize or self._tokenizer is None:
            return Completion(request, output, None, None)
        detokenizer = IncrementalDetokenizer(
            self._tokenizer, prompt_ids, skip_special_tokens=params.skip_special_tokens
        )
        stops = StopMatcher(list(params.stop), include=params.include_stop_str_in_output) if params.stop else None
        return Completion(request, output, detokenizer, stops)

    def apply(self, events: Sequence[Event]) -> tuple[list[RequestOutput], list[tuple[str, str]]]:
        """Apply one step's events.

        Returns:
            The requests with news, each once, and (core id, stop string) of the completions whose text has reached
            a stop string: the caller must finish these, and apply the events of that.
        """
        ended = {event.request_id: event for event in events if isinstance(event, Finished)}
        changed: dict[str, RequestOutput] = {}
        stopped: list[tuple[str, str]] = []
        for event in events:
            member = self._members.get(event.request_id)
            if member is None or not isinstance(event, _NEWS):
                continue
            group, completion = member
            if isinstance(event, Sampled):
                show = event.request_id not in ended or _is_shown(ended[event.request_id], completion.request.params)
                completion.take(event, show=show, tokenizer=self._tokenizer)
                if completion.matched is not None:
                    stopped.append((event.request_id, completion.matched))
            elif isinstance(event, PromptScored):
                self._take_prompt_scores(group, event)
            elif isinstance(event, Embedded):
                group.output.embedding = event.vector
            else:
                self._finish(group, completion, event.reason, event.stop_reason)
            changed[group.output.request_id] = group.output
        return list(changed.values()), stopped

    def _take_prompt_scores(self, group: Group, event: PromptScored) -> None:
        scores = group.output.prompt_logprobs
        if scores is not None:
            named = [name_tokens(entry, self._tokenizer) for entry in event.logprobs]
            scores[event.start : event.start + len(named)] = named

    def _finish(self, group: Group, completion: Completion, reason: str, stop_reason: str | int | None) -> None:
        completion.finish("error" if reason == "refused" else reason, stop_reason)
        if reason == "refused" and completion.output.finish_reason == "error":  # the last text may have been a stop
            group.output.refused = str(stop_reason)
            has_form = completion.request.params.structured_outputs is not None
            group.output.refused_kind = "form" if has_form else "request"
        group.num_unfinished -= 1
        del self._members[completion.request.id]
        if group.num_unfinished == 0:
            group.output.finished = True
            _copy_metrics(group)
            del self._groups[group.output.request_id]


def _is_shown(ended: Finished, params: SamplingParams) -> bool:
    """A token that stops the completion is not part of its text, unless that was asked for."""
    return ended.reason != "stop" or params.include_stop_str_in_output


def _copy_metrics(group: Group) -> None:
    """The request's metrics: of its first completion, but the sums and extremes over all of them."""
    parts = [c.request.metrics for c in group.completions]
    known = [m.first_token_time for m in parts if m.first_token_time is not None]
    ends = [m.finished_time for m in parts if m.finished_time is not None]
    group.output.metrics = RequestMetrics(
        arrival_time=parts[0].arrival_time,
        first_scheduled_time=parts[0].first_scheduled_time,
        first_token_time=min(known, default=None),
        finished_time=max(ends) if len(ends) == len(parts) else None,
        num_cached_tokens=parts[0].num_cached_tokens,
        num_preemptions=sum(m.num_preemptions for m in parts),
        num_blocks=sum(m.num_blocks for m in parts),
        waited_for=parts[0].waited_for,
    )
