"""Everything that can be the user's to mend, as one-line errors.

Each message says what was wrong and what would have been accepted. The command line prints the message alone and
exits with ``exit_code``; a traceback that reaches a user is a bug in Octavo.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MAX_COMPARED = 100


class OctavoError(Exception):
    """The base of all errors that Octavo raises on purpose."""

    exit_code = 1


class UsageError(OctavoError, ValueError):
    """An argument, a flag or an option is wrong."""

    exit_code = 2


class RequestError(OctavoError, ValueError):
    """One request cannot be served as it stands; the engine and all other requests are unharmed."""

    exit_code = 2


class FormError(RequestError):
    """The form that a request's completions shall have (``structured_outputs``) cannot be used."""


class ModelError(OctavoError):
    """A model, or a file of one, is missing, damaged, hostile or of a kind that Octavo does not know."""


class OutOfMemoryError(OctavoError):
    """The model or the KV cache that was asked for does not fit in memory."""


def nearest(name: str, known: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` for the known name closest to ``name``, or an empty string.

    A name far longer than any that is known is not compared: that could take seconds.
    """
    if len(name) > MAX_COMPARED:
        return ""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def reject_unknown(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ``UsageError`` for the first name in ``given`` that is not in ``known``, naming the nearest one."""
    known = list(known)
    for name in given:
        if name not in known:
            raise UsageError(f"{what} has no argument {name!r}{nearest(name, known)}")
