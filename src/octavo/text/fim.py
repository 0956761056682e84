"""Fill in the middle: prompts that ask a model for what stands between two texts (arXiv:2207.14255).

Models that are trained for it have three tokens of their own, and an order of the parts.
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo.errors import RequestError
from octavo.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class FillTokens:
    """The tokens before the prefix and before the suffix, and the one after which the middle is written."""

    prefix: str
    suffix: str
    middle: str


KNOWN = (
    FillTokens("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma
    FillTokens("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
    FillTokens("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    FillTokens("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder
    FillTokens("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
)


def fill_tokens(tokenizer: Tokenizer) -> FillTokens | None:
    """Those that the vocabulary has; None if the model cannot fill in."""
    for known in KNOWN:
        if all(tokenizer.token_to_id(token) is not None for token in (known.prefix, known.suffix, known.middle)):
            return known
    return None


def encode_fill(tokenizer: Tokenizer, prefix: str, suffix: str, *, add_special_tokens: bool = True) -> list[int]:
    """Token ids that ask for what stands between ``prefix`` and ``suffix``.

    Raises:
        RequestError: the model has no tokens for that.
    """
    tokens = fill_tokens(tokenizer)
    if tokens is None:
        raise RequestError("suffix needs a model with fill-in-the-middle tokens, which this one does not have")
    start = tokenizer.encode("", add_special_tokens=add_special_tokens)
    ids = [tokenizer.token_to_id(token) for token in (tokens.prefix, tokens.suffix, tokens.middle)]
    before, after, last = (token_id for token_id in ids if token_id is not None)
    parts = [tokenizer.encode(text, add_special_tokens=False) for text in (prefix, suffix)]
    return [*start, before, *parts[0], after, *parts[1], last]
