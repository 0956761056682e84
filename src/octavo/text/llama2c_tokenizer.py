"""``tokenizer.bin`` of llama2.c: the pieces and scores of a SentencePiece BPE model.

    i32 length of the longest piece; for each piece: f32 score, i32 length, UTF-8

Piece 0 is unknown, 1 is BOS, 2 is EOS; spaces are spelled " ", and BOS and EOS have line ends around them. How many
pieces there are is not said: they go on to the end of the file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from octavo.errors import ModelError
from octavo.text.spm_proto import Piece, PieceKind, model_proto, usable_pieces
from octavo.text.spm_tokenizer import SentencePieceTokenizer
from octavo.text.tokenizer_config import TokenizerConfig, read_limited

MAX_BYTES = 64 << 20
_UNKNOWN, _BOS, _EOS = 0, 1, 2
_NAMES = {_UNKNOWN: "<unk>", _BOS: "<s>", _EOS: "</s>"}
_HEADER, _PIECE = struct.Struct("<i"), struct.Struct("<fi")


def load_llama2c_tokenizer(path: Path) -> SentencePieceTokenizer:
    """Read a ``tokenizer.bin``. BOS is added, and a space before the text, as llama2.c does.

    Raises:
        ModelError: the file is damaged, or something else.
    """
    config = TokenizerConfig(bos_token="<s>", eos_token="</s>", add_bos_token=True, legacy=True, added_tokens={})
    try:
        pieces = list(usable_pieces(_pieces(read_limited(path, MAX_BYTES)), _UNKNOWN))
        return SentencePieceTokenizer(model_proto(pieces, add_dummy_prefix=True), config)
    except ValueError as error:
        reason = str(error).partition("\n")[0][:200]
        raise ModelError(f"{path}: damaged ({reason}); accepted: a tokenizer.bin of llama2.c") from None


def _pieces(data: bytes) -> Iterator[Piece]:
    if len(data) < _HEADER.size + 3 * _PIECE.size:
        raise ValueError(f"{len(data)} bytes are too few")
    (longest,) = _HEADER.unpack_from(data)
    position, number = _HEADER.size, 0
    while position < len(data):
        if len(data) - position < _PIECE.size:
            raise ValueError(f"it ends within piece {number}")
        score, length = _PIECE.unpack_from(data, position)
        position += _PIECE.size
        if not 0 <= length <= min(longest, len(data) - position):
            raise ValueError(f"piece {number} claims {length} bytes")
        yield _piece(number, score, data[position : position + length].decode())
        position, number = position + length, number + 1


def _piece(number: int, score: float, text: str) -> Piece:
    if number in _NAMES:
        return Piece(_NAMES[number], score, PieceKind.CONTROL)
    is_byte = len(text) == 6 and text.startswith("<0x") and text.endswith(">")
    return Piece(text.replace(" ", "▁"), score, PieceKind.BYTE if is_byte else PieceKind.NORMAL)
