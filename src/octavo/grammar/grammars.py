"""The grammars of an engine's requests: compiled beside its loop, advanced by what was sampled, asked for masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from llguidance import LLMatcher

from octavo.core.plan import Event, Finished, Sampled, StepPlan, TokenMasks
from octavo.errors import FormError
from octavo.grammar.compiler import Compiler
from octavo.grammar.matcher import MaskMaker, Matcher
from octavo.grammar.vocabulary import Vocabulary
from octavo.structured_outputs import StructuredOutputs
from octavo.text.tokenizer import Tokenizer

COMPILING = "compiling its grammar"


class Ending(NamedTuple):
    """A request that its grammar ends: "stop", or "refused" with what is wrong: its form cannot be used with this
    model, or not any further."""

    request_id: str
    reason: str
    stop_reason: str | None


@dataclass(frozen=True, slots=True)
class _Waiting:
    form: StructuredOutputs
    compiled: Future[LLMatcher]
    ends: np.ndarray | None


class _Tools:
    """What is made when the first form comes."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.compiler = Compiler(vocabulary)
        self.masks = MaskMaker(vocabulary)


class Grammars:
    """One matcher for each completion that has a form, from `add` until `forget` or its end. One thread calls it."""

    def __init__(self, tokenizer: Tokenizer | None, vocab_size: int) -> None:
        """Costs nothing before the first `add`, which needs a ``tokenizer``. The model has ``vocab_size`` tokens."""
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._tools: _Tools | None = None
        self._waiting: dict[str, _Waiting] = {}
        self._matchers: dict[str, Matcher] = {}

    def add(self, request_id: str, form: StructuredOutputs, end_token_ids: tuple[int, ...]) -> str:
        """Expect tokens of a completion. Any of ``end_token_ids`` may end it, but only where the grammar may end;
        without any it ends where the grammar leaves no other choice.

        Returns:
            Why it must wait until `ready` tells of it, or an empty string: its grammar is at hand.
        """
        tools = self._made_tools()
        ends = tools.vocabulary.bits_of(end_token_ids) if end_token_ids else None
        entry = _Waiting(form, tools.compiler.compile(form), ends)
        if entry.compiled.done() and not self._begin({request_id: entry}):
            return ""
        self._waiting[request_id] = entry
        return COMPILING

    def ready(self) -> tuple[list[str], list[Ending]]:
        """The completions whose grammars have been compiled since the last call, and those that end before they began:
        because theirs cannot be.
        """
        done = {name: entry for name, entry in self._waiting.items() if entry.compiled.done()}
        endings = self._begin(done)
        for name in done:
            del self._waiting[name]
        return list(done), endings

    def _begin(self, compiled: Mapping[str, _Waiting]) -> list[Ending]:
        """Make the matchers of completions whose grammars are compiled; who cannot go on."""
        endings = []
        for name, entry in compiled.items():
            try:
                self._matchers[name] = Matcher(entry.form, entry.compiled.result(), entry.ends)
            except FormError as error:
                endings.append(Ending(name, "refused", str(error)))
        return endings + self._update([name for name in compiled if name in self._matchers])

    def _made_tools(self) -> _Tools:
        if self._tools is None:
            assert self._tokenizer is not None, "a request with a form needs a tokenizer"
            self._tools = _Tools(Vocabulary(self._tokenizer, self._vocab_size))
        return self._tools

    def warm_up(self) -> None:
        """Begin to make what the first form would wait for, and with it all other requests: the library keeps the
        interpreter to itself for parts of a second while it sorts a vocabulary, and the process that tries forms takes
        a core while it starts.
        """
        if self._tokenizer is not None:
            self._made_tools().compiler.compile(StructuredOutputs(json_object=True))

    def wait(self, seconds: float) -> None:
        """Until a grammar is compiled, but no longer than ``seconds``."""
        wait([entry.compiled for entry in self._waiting.values()], seconds, FIRST_COMPLETED)

    def apply(self, events: Iterable[Event]) -> list[Ending]:
        """Take in what was sampled, and who is over. The completions that must end now."""
        if not self._matchers and not self._waiting:
            return []
        tokens: dict[str, int] = {}
        for event in events:
            if isinstance(event, Sampled) and event.request_id in self._matchers:
                tokens[event.request_id] = event.token_id
            elif isinstance(event, Finished):
                self.forget(event.request_id)
                tokens.pop(event.request_id, None)
        for name, token_id in tokens.items():
            self._matchers[name].take(token_id)
        return self._update(list(tokens))

    def masks(self, plan: StepPlan) -> TokenMasks:
        """The masks that the plan's rows wait for; none for a request that has ended meanwhile."""
        return {slot: self._matchers[name].mask for slot, name in plan.masked if name in self._matchers}

    def forget(self, request_id: str) -> None:
        self._waiting.pop(request_id, None)
        self._matchers.pop(request_id, None)

    def stop(self) -> None:
        """Let go of the threads. Safe to call twice."""
        if self._tools is not None:
            self._tools.compiler.stop()

    def _update(self, names: Sequence[str]) -> list[Ending]:
        """Bring masks up to date; who cannot go on."""
        matchers = [self._matchers[name] for name in names]
        if matchers:
            self._made_tools().masks.update(matchers)
        failed = [Ending(n, "refused", m.error) for n, m in zip(names, matchers, strict=True) if m.error]
        for matcher in matchers:
            if matcher.error:
                self._made_tools().compiler.forget(matcher.form)
        return failed + [Ending(n, "stop", None) for n, m in zip(names, matchers, strict=True) if m.over]
