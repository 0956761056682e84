"""Compiles grammars beside the engine's loop, and keeps those that were used last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from concurrent.futures import Future, ThreadPoolExecutor

from llguidance import LLMatcher

from octavo.errors import FormError
from octavo.grammar.checked import checked_grammar
from octavo.grammar.source import explain, parser_limits
from octavo.grammar.vocabulary import Vocabulary
from octavo.structured_outputs import StructuredOutputs

MOST_GRAMMARS = 64
"""Kept at once. Each has a lexer of up to some 20 MB, which its requests share and warm up for each other."""

MOST_USES = 1000
"""A lexer only grows, up to a limit at which it fails. So one that many have used is left to them, and made anew."""


class _Known:
    """A grammar that is compiled, or will be."""

    def __init__(self, compiled: Future[LLMatcher]) -> None:
        self.compiled = compiled
        self.uses = 0

    @property
    def is_good(self) -> bool:
        """Whether one more may use it; what failed may have been the machine's fault."""
        failed = self.compiled.done() and self.compiled.exception() is not None
        return not failed and self.uses < MOST_USES


class Compiler:
    """Grammars by what they say. Its own threads compile; ``compile`` may be called from one thread only."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="octavo-grammar")
        self._known: OrderedDict[Hashable, _Known] = OrderedDict()

    def compile(self, form: StructuredOutputs) -> Future[LLMatcher]:
        """A matcher at the grammar's beginning, to copy, once it is compiled; or a ``FormError``."""
        known = self._known.get(form.key)
        if known is None or not known.is_good:
            known = self._known[form.key] = _Known(self._pool.submit(self._compile, form))
        self._known.move_to_end(form.key)
        if len(self._known) > MOST_GRAMMARS:
            self._known.popitem(last=False)
        known.uses += 1
        return known.compiled

    def forget(self, form: StructuredOutputs) -> None:
        """Compile it anew the next time: its lexer has failed."""
        self._known.pop(form.key, None)

    def _compile(self, form: StructuredOutputs) -> LLMatcher:
        try:
            return self._matcher(form)
        except FormError:
            raise
        except BaseException as error:  # a panic of the library is no Exception; it ends this request, not all
            why = f"{type(error).__name__}: {error}"[:300]
            raise FormError(f"the {form.kind} of structured_outputs could not be compiled ({why})") from error

    def _matcher(self, form: StructuredOutputs) -> LLMatcher:
        grammar = checked_grammar(form, self._vocabulary.specials)
        matcher = LLMatcher(self._vocabulary.library, grammar, log_level=0, limits=parser_limits())
        if not matcher.is_error():
            matcher.compute_bitmask()  # so that the first request finds the lexer warm
        if matcher.is_error():
            raise FormError(
                f"the {form.kind} of structured_outputs cannot be used with this model: {explain(matcher.get_error())}"
            )
        return matcher

    def stop(self) -> None:
        """Let go of the threads; what has not begun is cancelled. Safe to call twice."""
        self._pool.shutdown(wait=False, cancel_futures=True)
