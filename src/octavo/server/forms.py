"""Forms of answers are tried before a request is queued, so that one that cannot be used is an error status."""

from __future__ import annotations

from starlette.requests import Request

from octavo.errors import RequestError
from octavo.grammar.form_check import FormCheck
from octavo.openai.errors import FieldError
from octavo.sampling_params import SamplingParams
from octavo.server.stream import unless_gone
from octavo.server.text_pool import TextPool
from octavo.text.tokenizer import Tokenizer


class Forms:
    """Tries forms beside the event loop, in a thread of its own: what takes long to try delays only other new forms."""

    def __init__(self, tokenizer: Tokenizer | None, vocab_size: int) -> None:
        self._check = None if tokenizer is None else FormCheck(tokenizer, vocab_size)
        self._thread = TextPool(1)

    async def check(self, request: Request, params: SamplingParams, field: str) -> None:
        """Raise ``FieldError`` for a form that cannot be compiled, which ``field`` of the body has asked for.

        Without a tokenizer it is left to the engine to refuse it. ``ClientGoneError``: nobody waits any more.
        """
        form = params.structured_outputs
        if form is None or self._check is None or self._check.knows(form):
            return
        try:
            await unless_gone(request.receive, self._thread.run(self._check.check, form))
        except RequestError as error:
            raise FieldError(f"{field}: {error}", field) from None

    def close(self) -> None:
        self._thread.close()
