"""Tries forms before requests that have them are queued: one that cannot be used is its sender's to mend."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from octavo.grammar.checked import checked_grammar, special_texts
from octavo.structured_outputs import StructuredOutputs
from octavo.text.tokenizer import Tokenizer

MOST_KNOWN = 4096
"""Forms that are remembered; of each a digest, for a form may be long."""


class FormCheck:
    """Tells forms that can be compiled from others, and remembers the good ones.

    What fails is tried again each time: it may have been the machine's fault.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """Of ``tokenizer`` the special tokens count, which grammars may name; the model has ``vocab_size`` tokens."""
        self._specials = special_texts(tokenizer, vocab_size)
        self._good: OrderedDict[bytes, None] = OrderedDict()

    def knows(self, form: StructuredOutputs) -> bool:
        """Whether the form was found to be good. Quick."""
        return _digest(form) in self._good

    def check(self, form: StructuredOutputs) -> None:
        """May take seconds; one thread at a time. Raises ``FormError`` as `checked_grammar` does."""
        if self.knows(form):
            return
        checked_grammar(form, self._specials)
        self._good[_digest(form)] = None
        if len(self._good) > MOST_KNOWN:
            self._good.popitem(last=False)


def _digest(form: StructuredOutputs) -> bytes:
    return hashlib.sha256(repr(form.key).encode()).digest()
