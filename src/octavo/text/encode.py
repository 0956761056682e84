"""From a prompt's text to its token ids, in bounded time."""

from __future__ import annotations

from octavo.errors import RequestError
from octavo.text.tokenizer import Tokenizer

_USUAL_CHARACTERS = 16
"""A text with more characters than this for each token that fits is first tried by its beginning."""
_SLACK = 256


def encode_prompt(tokenizer: Tokenizer, text: str, token_limit: int, *, add_special_tokens: bool = True) -> list[int]:
    """Token ids of a prompt for a model that takes ``token_limit`` tokens of prompt and output.

    Raises:
        RequestError: it is empty, cannot be encoded, or is far too long; a little too long is the engine's to refuse.
    """
    _refuse_far_too_long(tokenizer, text, token_limit)
    token_ids = tokenizer.encode(text, add_special_tokens=add_special_tokens)
    if not token_ids:
        raise RequestError("the prompt is empty; at least one token is needed")
    return token_ids


def _refuse_far_too_long(tokenizer: Tokenizer, text: str, token_limit: int) -> None:
    """Tokenize only the beginning of a huge text: all of it could take minutes and gigabytes to no end.

    Where a beginning ends inside a word, it may have more tokens there than the whole text: hence the slack.
    """
    length = _USUAL_CHARACTERS * token_limit
    while length < len(text):
        if len(tokenizer.encode(text[:length], add_special_tokens=False)) > 2 * token_limit + _SLACK:
            raise RequestError(
                f"the prompt has {len(text)} characters, far more than the {token_limit - 1} tokens that are accepted"
            )
        length *= 4
