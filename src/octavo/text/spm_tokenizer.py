"""SentencePiece vocabularies: ``tokenizer.model``, and the same pieces and scores out of a GGUF file.

The ``sentencepiece`` library does the merging. Around it stands what Llama's tokenizer adds (as in
Transformers): text is cut at special tokens first, and the dummy prefix space comes at the start of the text
only, unless ``legacy``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import sentencepiece

from octavo.errors import ModelError
from octavo.text.tiktoken_tokenizer import is_tiktoken, tiktoken_tokenizer
from octavo.text.token_bytes import sentencepiece_bytes
from octavo.text.tokenizer import Tokenizer
from octavo.text.tokenizer_config import AddedToken, TokenizerConfig, read_limited, read_tokenizer_config

MAX_MODEL_BYTES = 64 << 20

# A serialized protobuf message may be followed by another of its kind: later fields win. This one is
# ModelProto{normalizer_spec (field 3){add_dummy_prefix (field 3): false}}.
_WITHOUT_DUMMY_PREFIX = bytes([3 << 3 | 2, 2, 3 << 3, 0])


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model behind the engine's interface.

    Args:
        model_proto: the serialized ``ModelProto``.
        config: special tokens; ``added_tokens`` may lie outside the model's own ids.

    Attributes:
        model_proto: as it was given.
        added: id -> control and added tokens.

    Raises:
        ValueError: ``model_proto`` is damaged (a token that is no UTF-8 included).
    """

    def __init__(self, model_proto: bytes, config: TokenizerConfig) -> None:
        self.model_proto = model_proto
        self._first, self._bare = _processors(model_proto, config.add_prefix_space)
        self._later = self._first if config.legacy else self._bare
        self._tokens = [self._bare.id_to_piece(i) for i in range(self._bare.get_piece_size())]
        self.added = {**self._control_tokens(), **config.added_tokens}
        self._id_of_added = {token.content: i for i, token in self.added.items()}
        self._splitter = _splitter(self.added)
        special = [i for i, token in self.added.items() if token.special]
        super().__init__(config, special, strips_leading_space=_adds_prefix(self._first))
        self._prefix = [self.bos_token_id] if config.add_bos_token and self.bos_token_id is not None else []
        self._suffix = [self.eos_token_id] if config.add_eos_token and self.eos_token_id is not None else []

    @property
    def vocab_size(self) -> int:
        return max(len(self._tokens), max(self.added, default=-1) + 1)

    def token_to_id(self, token: str) -> int | None:
        if (added := self._id_of_added.get(token)) is not None:
            return added
        found = self._bare.piece_to_id(token)
        return found if self._tokens[found] == token else None

    def id_to_token(self, token_id: int) -> str | None:
        if (added := self.added.get(token_id)) is not None:
            return added.content
        return self._tokens[token_id] if 0 <= token_id < len(self._tokens) else None

    def _write(self, token: str) -> bytes:
        return sentencepiece_bytes(token)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids = [i for part in self._parts(text) for i in part]
        return [*self._prefix, *ids, *self._suffix] if add_special_tokens else ids

    def _parts(self, text: str) -> Iterator[list[int]]:
        """Token ids of each special token and of each stretch of text between them."""
        end = 0
        for match in self._splitter.finditer(text) if self._splitter else ():
            token_id = self._id_of_added[match[match.lastindex or 0]]
            stretch = text[end : match.start()]
            yield self._pieces(stretch.rstrip() if self.added[token_id].lstrip else stretch, end == 0)
            yield [token_id]
            end = match.end()
        yield self._pieces(text[end:], end == 0)

    def _pieces(self, text: str, at_start: bool) -> list[int]:
        return (self._first if at_start else self._later).encode(text) if text else []

    def _control_tokens(self) -> dict[int, AddedToken]:
        """The model's own control and unknown tokens: special, and recognised when spelled out in text."""
        model = self._bare
        special = (i for i in range(len(self._tokens)) if model.is_control(i) or model.is_unknown(i))
        return {i: AddedToken(self._tokens[i], special=True) for i in special}


def load_model_file(path: Path) -> Tokenizer:
    """Read a ``tokenizer.model``, SentencePiece's or tiktoken's, and the configuration files beside it.

    BOS is added unless they say otherwise.

    Raises:
        ModelError: a file is damaged.
    """
    data = read_limited(path, MAX_MODEL_BYTES)
    if not is_tiktoken(data):
        return _spm_tokenizer(path, data)
    return tiktoken_tokenizer(path, data)


def _spm_tokenizer(path: Path, proto: bytes) -> SentencePieceTokenizer:
    try:
        names = sentencepiece.SentencePieceProcessor(model_proto=proto or b"\0")
        config = _with_defaults(read_tokenizer_config(path.parent), names)
        return SentencePieceTokenizer(proto, config)
    except (ValueError, RuntimeError):
        raise ModelError(f"{path}: damaged, or no SentencePiece model; accepted: a SentencePiece ModelProto") from None


def _with_defaults(config: TokenizerConfig, model: sentencepiece.SentencePieceProcessor) -> TokenizerConfig:
    def piece(token_id: int) -> str | None:
        return model.id_to_piece(token_id) if token_id >= 0 else None

    return replace(
        config,
        bos_token=config.bos_token or piece(model.bos_id()),
        eos_token=config.eos_token or piece(model.eos_id()),
        add_bos_token=True if config.add_bos_token is None else config.add_bos_token,
    )


def _processors(
    proto: bytes, add_prefix_space: bool | None
) -> tuple[sentencepiece.SentencePieceProcessor, sentencepiece.SentencePieceProcessor]:
    """Two readings of one model: as the start of a text is encoded, and without the dummy prefix."""
    try:
        bare = sentencepiece.SentencePieceProcessor(model_proto=proto + _WITHOUT_DUMMY_PREFIX)
        own = bare if add_prefix_space is False else sentencepiece.SentencePieceProcessor(model_proto=proto)
    except RuntimeError as error:
        raise ValueError(str(error)) from None
    return own, bare


def _adds_prefix(processor: sentencepiece.SentencePieceProcessor) -> bool:
    return processor.encode_as_pieces("a")[0].startswith("▁")


def _splitter(added: Mapping[int, AddedToken]) -> re.Pattern[str] | None:
    """One group a token, longest first; white space that it swallows on its right is outside the group."""
    tokens = sorted(added.values(), key=lambda token: -len(token.content))
    parts = (f"({re.escape(token.content)})" + (r"\s*" if token.rstrip else "") for token in tokens)
    return re.compile("|".join(parts)) if tokens else None
