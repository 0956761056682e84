"""Token ids to text, as they come: no broken characters, no waiting longer than a character takes."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from octavo.text.tokenizer import Tokenizer

_LONGEST_TAIL = 16
"""How many last prompt tokens may hold a character that is not complete: its bytes, and empty tokens."""


class IncrementalDetokenizer:
    """Turns the output tokens of one request into text.

    As every token writes fixed bytes, an incremental UTF-8 decoder over them is all there is to it: after any
    number of ``append`` calls and one ``finish``, the joined pieces equal ``tokenizer.decode`` of all ids,
    however they were split.

    The output continues the prompt: a leading space is dropped only if no prompt token wrote anything, and a
    character that the prompt began and the output completes is output.

    Args:
        prompt_ids: token ids before the first appended one.
        skip_special_tokens: leave special tokens out of the text.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = (), *, skip_special_tokens: bool = True
    ) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._at_start = tokenizer.strips_leading_space and not any(map(self._bytes_of, prompt_ids))
        self._decode(b"".join(map(self._bytes_of, prompt_ids[-_LONGEST_TAIL:])))

    def append(self, token_ids: Iterable[int]) -> str:
        """The text that became final with ``token_ids``: empty while a character is not complete."""
        token_bytes, skipped = self._token_bytes, self._skipped
        written = b"".join([token_bytes(i) for i in token_ids if i not in skipped])
        return self._strip(self._decode(written)) if written else ""

    def finish(self) -> str:
        """What remains: U+FFFD for a character that was never completed, else nothing."""
        return self._strip(self._decode(b"", True))

    def _bytes_of(self, token_id: int) -> bytes:
        return b"" if token_id in self._skipped else self._token_bytes(token_id)

    def _strip(self, text: str) -> str:
        if self._at_start and text:
            self._at_start = False
            return text.removeprefix(" ")
        return text
