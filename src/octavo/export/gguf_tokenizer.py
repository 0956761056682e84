"""A tokenizer as the metadata of a GGUF file (``tokenizer.*``): the inverse of `octavo.text.gguf_tokenizer`.

Byte-level BPE is kind "gpt2": its merges, and the name of the rule that cuts text into words. SentencePiece is kind
"llama": its scores; a BPE with SentencePiece's spelling has the rank of the merge that makes a token as its score.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sentencepiece

from octavo.errors import ModelError
from octavo.text.hf_tokenizer import HFTokenizer
from octavo.text.pre_tokenizers import GPT2_PATTERN, pre_tokenizer_name
from octavo.text.spm_proto import Piece, PieceKind
from octavo.text.spm_tokenizer import SentencePieceTokenizer
from octavo.text.tokenizer import Tokenizer, load_tokenizer
from octavo.weights.checkpoint import Checkpoint

PREFIX = "tokenizer.ggml."


def tokenizer_metadata(checkpoint: Checkpoint, tokenizer: Path) -> dict[str, Any]:
    """The keys of the tokenizer at ``tokenizer``, with an entry for each row of the model's embedding.

    Raises:
        ModelError: there is none, or GGUF has no way to describe it.
    """
    from octavo.weights.gguf import GGUFCheckpoint

    if isinstance(checkpoint, GGUFCheckpoint) and tokenizer == checkpoint.path:
        return {key: value for key, value in checkpoint.file.metadata.items() if key.startswith("tokenizer.")}
    found = load_tokenizer(tokenizer)
    if found.vocab_size > checkpoint.config.vocab_size:
        raise ModelError(f"it has {found.vocab_size} tokens, the model {checkpoint.config.vocab_size}")
    match found:
        case SentencePieceTokenizer():
            keys = _llama(sentencepiece_pieces(found), checkpoint.config.vocab_size) | _space_prefix(found)
        case HFTokenizer():
            keys = _from_json(found, json.loads(found.to_json()), checkpoint.config.vocab_size)
        case _:
            raise ModelError(f"a {type(found).__name__} has no description in GGUF")
    return {PREFIX + key: value for key, value in (keys | _special(found)).items()} | _template(found)


def sentencepiece_pieces(tokenizer: SentencePieceTokenizer) -> list[Piece]:
    """All tokens with their scores; what was added beside the model's own is defined by the user, or for control."""
    model = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model_proto)
    own = model.get_piece_size()
    pieces = [Piece(model.id_to_piece(i), model.get_score(i), _kind(model, i)) for i in range(own)]
    for token_id in range(own, tokenizer.vocab_size):
        added = tokenizer.added.get(token_id)
        kind = PieceKind.UNUSED if added is None else _added_kind(added.special)
        pieces.append(Piece(f"<unused token {token_id}>" if added is None else added.content, 0.0, kind))
    return pieces


def adds_bos(tokenizer: Tokenizer) -> bool:
    """Whether a text begins with BOS when it is encoded."""
    return tokenizer.bos_token_id is not None and tokenizer.encode("")[:1] == [tokenizer.bos_token_id]


def _special(tokenizer: Tokenizer) -> dict[str, Any]:
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    adds_eos = tokenizer.eos_token_id is not None and tokenizer.encode("a")[-1:] == [tokenizer.eos_token_id]
    adds = {"add_bos_token": adds_bos(tokenizer), "add_eos_token": adds_eos}
    return {**adds, **{key: i for key, i in ids.items() if i is not None}}


def _space_prefix(tokenizer: Tokenizer) -> dict[str, Any]:
    """Whether a text is read as if a space stood before it; readers of kind "llama" take that for granted."""
    first = tokenizer.id_to_token((tokenizer.encode("a", add_special_tokens=False) or [0])[0])
    return {"add_space_prefix": first is not None and first.startswith("▁")}


def _template(tokenizer: Tokenizer) -> dict[str, Any]:
    return {} if tokenizer.chat_template is None else {"tokenizer.chat_template": tokenizer.chat_template}


def _kind(model: sentencepiece.SentencePieceProcessor, token_id: int) -> PieceKind:
    if model.is_unknown(token_id):
        return PieceKind.UNKNOWN
    if model.is_control(token_id):
        return PieceKind.CONTROL
    if model.is_byte(token_id):
        return PieceKind.BYTE
    return PieceKind.UNUSED if model.is_unused(token_id) else PieceKind.NORMAL


def _added_kind(special: bool) -> PieceKind:
    return PieceKind.CONTROL if special else PieceKind.USER_DEFINED


def _llama(pieces: list[Piece], vocab_size: int) -> dict[str, Any]:
    filler = [Piece(f"<unused token {i}>", 0.0, PieceKind.UNUSED) for i in range(len(pieces), vocab_size)]
    pieces = [*pieces, *filler]
    unknown = next((i for i, piece in enumerate(pieces) if piece.kind == PieceKind.UNKNOWN), 0)
    return {
        "model": "llama",
        "pre": "default",
        "tokens": [piece.text for piece in pieces],
        "scores": [float(piece.score) for piece in pieces],
        "token_type": [int(piece.kind) for piece in pieces],
        "unknown_token_id": unknown,
    }


def _from_json(tokenizer: HFTokenizer, raw: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """Of a ``tokenizer.json``."""
    model = raw["model"]
    if model.get("type") != "BPE":
        raise ModelError(f"a {model.get('type')} tokenizer has no description in GGUF; accepted: BPE")
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    if model.get("byte_fallback"):
        return _llama(_ranked_pieces(tokenizer, raw, merges), vocab_size) | _space_prefix(tokenizer)
    name = pre_tokenizer_name(tuple(_patterns(raw["pre_tokenizer"])), bool(model.get("ignore_merges")))
    if name is None:
        raise ModelError("the way it cuts text into words has no name in GGUF that is known here")
    kinds = _kinds(raw)
    tokens = [tokenizer.id_to_token(i) for i in range(vocab_size)]
    return {
        "model": "gpt2",
        "pre": name,
        "tokens": [f"[PAD{i}]" if token is None else token for i, token in enumerate(tokens)],
        "token_type": [
            int(PieceKind.UNUSED if token is None else kinds.get(i, PieceKind.NORMAL)) for i, token in enumerate(tokens)
        ],
        "merges": [" ".join(merge) for merge in merges],
    }


def _kinds(raw: dict[str, Any]) -> dict[int, PieceKind]:
    return {token["id"]: _added_kind(token["special"]) for token in raw["added_tokens"]}


def _patterns(state: dict[str, Any] | None) -> Iterator[str]:
    """The expressions that cut text into words, one after the other."""
    match state:
        case {"type": "Sequence", "pretokenizers": parts}:
            for part in parts:
                yield from _patterns(part)
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            yield pattern
        case {"type": "Digits", "individual_digits": True}:
            yield r"\p{N}"
        case {"type": "ByteLevel", "add_prefix_space": False, **rest}:
            if rest.get("use_regex", True):
                yield GPT2_PATTERN
        case _:
            raise ModelError(f"its pre-tokenizer {(state or {}).get('type')} has no description in GGUF")


def _ranked_pieces(tokenizer: HFTokenizer, raw: dict[str, Any], merges: list[tuple[str, ...]]) -> list[Piece]:
    """The vocabulary with a score for each token: the earlier a merge makes it, the higher."""
    rank: dict[str, int] = {}
    for i, merge in enumerate(merges):
        rank.setdefault("".join(merge), i)
    kinds, pieces = _kinds(raw), []
    unknown = raw["model"].get("unk_token")
    for token_id in range(tokenizer.vocab_size):
        token = tokenizer.id_to_token(token_id) or ""
        kind = kinds.get(token_id, PieceKind.NORMAL if token else PieceKind.UNUSED)
        if token and token == unknown:
            kind = PieceKind.UNKNOWN
        elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            kind = PieceKind.BYTE
        pieces.append(Piece(token or f"<unused token {token_id}>", -float(rank.get(token, len(merges))), kind))
    return pieces
