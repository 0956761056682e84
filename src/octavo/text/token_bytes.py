"""How the spelling of a token in a vocabulary stands for bytes.

Byte-level BPE (GPT-2) spells every byte as one printable character; SentencePiece spells a space as "▁" and a
byte that has no token of its own as "<0x0A>".
"""

from __future__ import annotations

import re

_PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))
_OTHERS = tuple(b for b in range(256) if b not in _PRINTABLE)

BYTE_OF_CHAR = {chr(b): b for b in _PRINTABLE} | {chr(256 + n): b for n, b in enumerate(_OTHERS)}
"""GPT-2's alphabet: printable Latin-1 stands for itself, the 68 other bytes are spelled from U+0100 on."""

_CHAR_OF_BYTE = {byte: char for char, byte in BYTE_OF_CHAR.items()}
_LATIN1_OF_CHAR = {ord(char): byte for char, byte in BYTE_OF_CHAR.items()}
_NO_BYTE = re.compile(f"[^{re.escape(''.join(BYTE_OF_CHAR))}]")
_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")


def byte_level_bytes(token: str) -> bytes:
    """Bytes of a byte-level token. An added token outside GPT-2's alphabet stands for itself."""
    if _NO_BYTE.search(token):
        return token.encode("utf-8", "replace")
    return token.translate(_LATIN1_OF_CHAR).encode("latin-1")


def byte_level_text(data: bytes) -> str:
    """How GPT-2's alphabet spells bytes: the inverse of `byte_level_bytes`."""
    return "".join([_CHAR_OF_BYTE[byte] for byte in data])


def sentencepiece_bytes(token: str) -> bytes:
    """Bytes of a SentencePiece token, "<0x..>" being one byte (arXiv:1808.06226, byte fallback)."""
    if match := _BYTE_TOKEN.fullmatch(token):
        return bytes([int(match[1], 16)])
    return token.replace("▁", " ").encode("utf-8", "replace")


def spaced_word_bytes(token: str) -> bytes:
    """Bytes of a word of a vocabulary whose decoder joins words with spaces."""
    return b" " + token.encode("utf-8", "replace")
