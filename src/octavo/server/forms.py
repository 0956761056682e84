"""Forms of answers are tried before a request is queued, so that one that cannot be used is an error status."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import Request

from octavo.errors import FormError
from octavo.grammar.form_check import FormCheck
from octavo.openai.structured import form_error
from octavo.sampling_params import SamplingParams
from octavo.server.text_pool import TextPool
from octavo.text.tokenizer import Tokenizer


@contextmanager
def blaming(field: str) -> Iterator[None]:
    """Inside the block, a form that cannot be used is the mistake of a field of the body."""
    try:
        yield
    except FormError as error:
        raise form_error(field, error) from None


class Forms:
    """Tries forms beside the event loop, in a thread of its own: what takes long to try delays only other new forms."""

    def __init__(self, tokenizer: Tokenizer | None, vocab_size: int) -> None:
        self._check = None if tokenizer is None else FormCheck(tokenizer, vocab_size)
        self._thread = TextPool(1)

    async def check(self, request: Request, params: SamplingParams, field: str, deadline: float | None) -> None:
        """Raise ``FieldError`` for a form that cannot be compiled, which ``field`` of the body has asked for.

        Without a tokenizer it is left to the engine to refuse it. Raises what ``TextPool.run_for`` does, too.
        """
        form = params.structured_outputs
        if form is not None and self._check is not None and not self._check.knows(form):
            with blaming(field):
                await self._thread.run_for(request.receive, deadline, self._check.check, form)

    def close(self) -> None:
        self._thread.close()
