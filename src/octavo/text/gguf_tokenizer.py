"""Tokenizers out of the metadata of a GGUF file (keys ``tokenizer.*``).

Kind "gpt2" is byte-level BPE with merges; kind "llama" is SentencePiece BPE, which merges by the scores of
its pieces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from octavo.errors import ModelError
from octavo.text.hf_tokenizer import HFTokenizer
from octavo.text.pre_tokenizers import PreTokenizer, pre_tokenizer
from octavo.text.spm_proto import Piece, PieceKind, model_proto, usable_pieces
from octavo.text.spm_tokenizer import SentencePieceTokenizer
from octavo.text.tokenizer import Tokenizer
from octavo.text.tokenizer_config import TokenizerConfig

_PREFIX = "tokenizer.ggml."


def load_gguf_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer inside the GGUF file at ``path``.

    Raises:
        ModelError: the file is damaged, or holds no tokenizer, or one of an unknown kind.
    """
    from octavo.weights.gguf_file import open_gguf

    try:
        return tokenizer_from_metadata(open_gguf(path).metadata)
    except ModelError as error:
        message = str(error)
        raise ModelError(message if str(path) in message else f"{path}: {message}") from None


def tokenizer_from_metadata(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that GGUF ``metadata`` describes; ``ModelError`` if it is damaged or of another kind."""
    vocabulary = _Vocabulary(metadata)
    kind = vocabulary.scalar("model", str, "")
    if kind not in ("gpt2", "llama"):
        raise ModelError(f"tokenizer kind {kind!r:.60} is not supported; accepted: gpt2, llama")
    build = _byte_level_bpe if kind == "gpt2" else _sentencepiece
    try:
        return build(vocabulary)
    except ModelError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0][:200]
        raise ModelError(f"damaged tokenizer ({reason}); accepted: a complete {kind} vocabulary") from None


class _Vocabulary:
    """Checked access to the ``tokenizer.*`` keys of a GGUF file."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self.tokens: Sequence[str] = self.array("tokens", str)
        self.kinds = self._per_token("token_type", int, 1)

    def scalar(self, key: str, kind: type, default: Any, prefix: str = _PREFIX) -> Any:
        value = self._metadata.get(prefix + key)
        if value is not None and not isinstance(value, kind):
            raise ModelError(f"{prefix}{key} is {value!r:.60}; accepted: a value of type {kind.__name__}")
        return default if value is None else value

    def array(self, key: str, kind: type) -> list[Any]:
        value = self._metadata.get(_PREFIX + key)
        values: Any = value.tolist() if isinstance(value, np.ndarray) else value
        if not isinstance(values, list) or not values or not set(map(type, values)) <= {kind}:
            raise ModelError(f"{_PREFIX}{key} is missing or damaged; accepted: a list of {kind.__name__} values")
        return values

    def scores(self) -> list[float]:
        return self._per_token("scores", float, 0.0)

    def named(self, key: str, default: int | None = None) -> str | None:
        """The text of the token whose id stands under ``key``."""
        token_id = self.scalar(key, int, default)
        if token_id is not None and not 0 <= token_id < len(self.tokens):
            raise ModelError(f"{_PREFIX}{key} is {token_id}; accepted: below the vocabulary size, {len(self.tokens)}")
        return None if token_id is None else self.tokens[token_id]

    def config(self, *, bos: int | None, eos: int | None, add_bos: bool, **more: Any) -> TokenizerConfig:
        """Special tokens and chat template; the arguments are what holds when the file is silent."""
        return TokenizerConfig(
            bos_token=self.named("bos_token_id", bos),
            eos_token=self.named("eos_token_id", eos),
            add_bos_token=self.scalar("add_bos_token", bool, add_bos),
            add_eos_token=self.scalar("add_eos_token", bool, False),
            chat_template=self.scalar("chat_template", str, None, prefix="tokenizer."),
            **more,
        )

    def _per_token(self, key: str, kind: type, default: Any) -> list[Any]:
        if _PREFIX + key not in self._metadata:
            return [default] * len(self.tokens)
        values = self.array(key, kind)
        if len(values) != len(self.tokens):
            raise ModelError(f"{_PREFIX}{key} has {len(values)} entries; accepted: one a token, {len(self.tokens)}")
        return values


def _byte_level_bpe(vocabulary: _Vocabulary) -> Tokenizer:
    rules = pre_tokenizer(vocabulary.scalar("pre", str, "default"))
    ids = {token: i for i, token in reversed(list(enumerate(vocabulary.tokens)))}
    model = models.BPE(ids, _merges(vocabulary.array("merges", str)), ignore_merges=rules.ignore_merges)
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = _splits(rules)
    backend.decoder = decoders.ByteLevel()
    _add_tokens(backend, vocabulary)
    return HFTokenizer(backend, vocabulary.config(bos=None, eos=None, add_bos=rules.add_bos_token, added_tokens={}))


def _merges(lines: list[str]) -> list[tuple[str, str]]:
    """The two halves of each merge; GGUF writes a space between (a space in a token is spelled "Ġ")."""
    pairs = [line.partition(" ") for line in lines]
    if bad := next((line for line, pair in zip(lines, pairs, strict=True) if not pair[2]), None):
        raise ModelError(f"{_PREFIX}merges holds {bad!r:.60}; accepted: two tokens with a space between")
    return [(left, right) for left, _, right in pairs]


def _splits(rules: PreTokenizer) -> pre_tokenizers.PreTokenizer:
    words = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in rules.patterns]
    return pre_tokenizers.Sequence([*words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _add_tokens(backend: tokenizers.Tokenizer, vocabulary: _Vocabulary) -> None:
    """Control and user-defined tokens are found in the text before it is cut into words."""
    pairs = list(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
    control = [t for t, kind in pairs if kind == PieceKind.CONTROL and t]
    user_defined = [t for t, kind in pairs if kind == PieceKind.USER_DEFINED and t]
    backend.add_special_tokens([tokenizers.AddedToken(t, special=True, normalized=False) for t in control])
    backend.add_tokens([tokenizers.AddedToken(t, normalized=False) for t in user_defined])


def _sentencepiece(vocabulary: _Vocabulary) -> Tokenizer:
    rows = zip(vocabulary.tokens, vocabulary.scores(), vocabulary.kinds, strict=True)
    pieces = usable_pieces(starmap(Piece, rows), vocabulary.scalar("unknown_token_id", int, 0))
    add_prefix = vocabulary.scalar("add_space_prefix", bool, True)
    config = vocabulary.config(bos=1, eos=2, add_bos=True, add_prefix_space=add_prefix, legacy=True, added_tokens={})
    return SentencePieceTokenizer(model_proto(pieces, add_dummy_prefix=add_prefix), config)
