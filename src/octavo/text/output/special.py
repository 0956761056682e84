"""Markers that are special tokens: by default they are left out of the text, where the router needs them."""

from __future__ import annotations

from dataclasses import replace

from octavo.sampling_params import SamplingParams
from octavo.text.output.formats import OutputFormat
from octavo.text.tokenizer import Tokenizer


def special_markers(format: OutputFormat, tokenizer: Tokenizer) -> dict[str, int]:
    """The model's special tokens that are part of the format's markers: text -> id."""
    parts = (format.reasoning, format.tools)
    texts = " ".join(text for part in parts if part is not None for text in part.markers)
    names = {tokenizer.id_to_token(token_id): token_id for token_id in tokenizer.special_ids}
    return {name: token_id for name, token_id in names.items() if name and name in texts}


def with_markers(params: SamplingParams, format: OutputFormat, tokenizer: Tokenizer) -> SamplingParams:
    """``params`` with which the markers are part of the text, as the router needs them.

    Mistral's and Llama's calls begin with special tokens, Qwen's do not. The token that ends the completion is not part
    of the text either way.
    """
    return replace(params, skip_special_tokens=False) if special_markers(format, tokenizer) else params
