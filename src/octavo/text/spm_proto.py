"""Writes a SentencePiece ``ModelProto`` (in protobuf's wire format) for a vocabulary from elsewhere."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import NamedTuple

# Field numbers of sentencepiece_model.proto.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE_TEXT, _PIECE_SCORE, _PIECE_KIND = 1, 2, 3
_TRAINER_MODEL_TYPE, _TRAINER_BYTE_FALLBACK, _TRAINER_FIRST_ID, _TRAINER_BPE = 3, 35, 40, 2
_NORMALIZER_DUMMY_PREFIX, _NORMALIZER_EXTRA_SPACES, _NORMALIZER_ESCAPE = 3, 4, 5


class PieceKind(IntEnum):
    """Kinds of tokens; GGUF's ``token_type`` has the same numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Piece(NamedTuple):
    """One token: higher scores merge first."""

    text: str
    score: float
    kind: PieceKind


def usable_pieces(pieces: Iterable[Piece], unknown: int) -> Iterator[Piece]:
    """``pieces`` with exactly one unknown token, number ``unknown``, and with fillers for empty and repeated ones."""
    seen: set[str] = set()
    for number, (text, score, kind) in enumerate(pieces):
        if not text or text in seen:
            text, kind = f"<unused token {number}>", PieceKind.UNUSED
        if number == unknown:
            kind = PieceKind.UNKNOWN
        elif kind == PieceKind.UNKNOWN:
            kind = PieceKind.CONTROL
        seen.add(text)
        yield Piece(text, score, PieceKind(kind))


def model_proto(pieces: Iterable[Piece], *, add_dummy_prefix: bool) -> bytes:
    """A BPE model of ``pieces`` that leaves text as it is but for the dummy prefix and "▁" for spaces."""
    pieces = list(pieces)
    byte_fallback = any(piece.kind == PieceKind.BYTE for piece in pieces)
    trainer = _number(_TRAINER_MODEL_TYPE, _TRAINER_BPE) + _number(_TRAINER_BYTE_FALLBACK, byte_fallback)
    trainer += _number(_TRAINER_FIRST_ID, _id_of_unknown(pieces))
    normalizer = _number(_NORMALIZER_DUMMY_PREFIX, add_dummy_prefix) + _number(_NORMALIZER_EXTRA_SPACES, False)
    normalizer += _number(_NORMALIZER_ESCAPE, True)
    body = b"".join(_message(_PIECES, _piece(piece)) for piece in pieces)
    return body + _message(_TRAINER, trainer) + _message(_NORMALIZER, normalizer)


def _id_of_unknown(pieces: list[Piece]) -> int:
    return next((i for i, piece in enumerate(pieces) if piece.kind == PieceKind.UNKNOWN), 0)


def _piece(piece: Piece) -> bytes:
    score = _varint(_PIECE_SCORE << 3 | 5) + struct.pack("<f", piece.score)
    return _message(_PIECE_TEXT, piece.text.encode()) + score + _number(_PIECE_KIND, piece.kind)


def _message(field: int, body: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(body)) + body


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(int(value))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))
