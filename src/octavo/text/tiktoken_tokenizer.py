"""Llama 3's ``tokenizer.model``: byte-level BPE as tiktoken has it, one line "base64 rank" for each token.

The rank of a token is its id, and says how early its two halves are merged. The file holds neither the rule that cuts
text into words nor the special tokens; both are known for Llama 3 (and in ``tokenizer_config.json``, if there is one).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from octavo.errors import ModelError
from octavo.text.hf_tokenizer import HFTokenizer
from octavo.text.pre_tokenizers import pre_tokenizer
from octavo.text.token_bytes import byte_level_text
from octavo.text.tokenizer_config import AddedToken, TokenizerConfig, read_tokenizer_config

MAX_TOKEN_BYTES = 512
LLAMA3_TOKENS = 128000
_NAMED = {
    0: "begin_of_text",
    1: "end_of_text",
    4: "finetune_right_pad_id",
    6: "start_header_id",
    7: "end_header_id",
    8: "eom_id",
    9: "eot_id",
    10: "python_tag",
}
_LINE = re.compile(rb"[A-Za-z0-9+/]+=* [0-9]{1,9}")


def is_tiktoken(data: bytes) -> bool:
    """Whether a ``tokenizer.model`` is a list of ranks, and not SentencePiece's."""
    return _LINE.fullmatch(data[: 2 * MAX_TOKEN_BYTES].partition(b"\n")[0].rstrip(b"\r")) is not None


def tiktoken_tokenizer(path: Path, data: bytes) -> HFTokenizer:
    """The tokenizer of ``data``, the bytes of the file at ``path``. BOS is added.

    Raises:
        ModelError: it is damaged, or a vocabulary whose special tokens are not known.
    """
    ranks = read_ranks(data, path)
    config = _with_special_tokens(path, read_tokenizer_config(path.parent), len(ranks))
    rules = pre_tokenizer("llama3")
    ids = {byte_level_text(token): rank for token, rank in ranks.items()}
    backend = tokenizers.Tokenizer(models.BPE(ids, _merges(ranks), ignore_merges=rules.ignore_merges))
    words = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in rules.patterns]
    bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*words, bytes_of_words])
    backend.decoder = decoders.ByteLevel()
    for token_id, token in sorted(config.added_tokens.items()):
        backend.add_special_tokens([tokenizers.AddedToken(token.content, special=True, normalized=False)])
        if backend.token_to_id(token.content) != token_id:
            raise ModelError(f"{path}: the special token {token.content!r:.60} cannot have the id {token_id}")
    return HFTokenizer(backend, config)


def read_ranks(data: bytes, path: Path) -> dict[bytes, int]:
    """Token -> rank. ``ModelError`` unless the ranks are 0, 1, 2, … and each of the 256 bytes is a token."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines()):
        try:
            encoded, rank = line.split()
            token = base64.b64decode(encoded, validate=True)
        except (ValueError, binascii.Error):
            raise ModelError(
                f"{path}: line {number + 1} is damaged; accepted: a token in base64, and its rank"
            ) from None
        if rank != b"%d" % number or token in ranks or not 0 < len(token) <= MAX_TOKEN_BYTES:
            raise ModelError(f"{path}: line {number + 1} is damaged; accepted: rank {number}, a token of its own")
        ranks[token] = number
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise ModelError(f"{path}: damaged, {len(missing)} of 256 bytes have no token, the first is {missing[0]}")
    return ranks


def _merges(ranks: Mapping[bytes, int]) -> list[tuple[str, str]]:
    """All pairs of tokens that make a token, those of the token with the lowest rank first."""
    merges = []
    for token in ranks:
        cuts = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        pairs = [(left, right) for left, right in cuts if left in ranks and right in ranks]
        pairs.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [(byte_level_text(left), byte_level_text(right)) for left, right in pairs]
    return merges


def _with_special_tokens(path: Path, config: TokenizerConfig, first: int) -> TokenizerConfig:
    """The configuration with BOS, EOS and special tokens: those beside the file, else Llama 3's."""
    added = dict(config.added_tokens)
    if not added:
        if first != LLAMA3_TOKENS:
            raise ModelError(
                f"{path}: the special tokens of a tiktoken vocabulary of {first} tokens are not known; accepted:"
                f" Llama 3's {LLAMA3_TOKENS}, or a tokenizer_config.json with added_tokens_decoder"
            )
        added = {first + number: AddedToken(text, special=True) for number, text in enumerate(llama3_special_tokens())}
    return replace(
        config,
        bos_token=config.bos_token or "<|begin_of_text|>",
        eos_token=config.eos_token or "<|end_of_text|>",
        add_bos_token=True if config.add_bos_token is None else config.add_bos_token,
        added_tokens=added,
    )


def llama3_special_tokens() -> list[str]:
    """The 256 that follow the vocabulary of Llama 3.1 (arXiv:2407.21783) and later ones, in order of their ids."""
    reserved = (f"reserved_special_token_{number}" for number in range(256))
    return [f"<|{_NAMED[number] if number in _NAMED else next(reserved)}|>" for number in range(256)]
