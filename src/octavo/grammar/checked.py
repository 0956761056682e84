"""Whether a grammar can be used at all, found out where it can do no harm.

Schemas, regular expressions and grammars come from whoever sends requests. The library has limits of its own, but a
long chain of rules still overflows the stack, which would end the engine. So each is compiled in a child process first.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.errors import FormError
from octavo.structured_outputs import StructuredOutputs
from octavo.text.limited_process import DiedError, shared_process

if TYPE_CHECKING:
    from octavo.text.tokenizer import Tokenizer

WALL_SECONDS = 30.0
"""A backstop for a machine so busy that the child's limit on CPU time takes this long to be reached."""

_WORKER = Path(__file__).with_name("worker.py")


def checked_grammar(form: StructuredOutputs, specials: Sequence[str] = ()) -> str:
    """The library's grammar for ``form``. May take seconds; safe to call from any thread.

    ``specials`` are the model's special tokens, which a grammar may name: ``<|im_end|>``.

    Raises:
        FormError: it is malformed, matches nothing, or takes too much time, memory or stack to compile.
    """
    question = {
        "kind": form.kind,
        "value": getattr(form, form.kind),
        "compact": form.disable_any_whitespace,
        "specials": list(specials),
    }
    try:
        answer = shared_process(_WORKER, "compiles grammars", WALL_SECONDS).ask(json.dumps(question).encode("ascii"))
    except DiedError as error:
        answer = {"error": _cause_of_death(error.status)}
    if "error" in answer:
        raise FormError(f"the {form.kind} of structured_outputs cannot be used: {answer['error']}")
    return answer["grammar"]


def special_texts(tokenizer: Tokenizer, size: int) -> tuple[str, ...]:
    """The texts of the special tokens of a model with ``size`` tokens."""
    found = (tokenizer.id_to_token(i) for i in sorted(tokenizer.special_ids) if i < size)
    return tuple(token for token in found if token)


def _cause_of_death(status: int | None) -> str:
    if status == -signal.SIGPROF:
        return "it takes too long to compile"
    return f"the compiler failed on it (exit status {status}); it may be nested too deeply, or need too much memory"
