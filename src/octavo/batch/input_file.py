"""Reading a batch's input: line by line, whatever its size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from octavo.errors import OctavoError

MAX_LINE_BYTES = 16 << 20
"""Of one input line; far more than the longest prompt that a model can read."""

_CHUNK = 1 << 20
_BOM = b"\xef\xbb\xbf"


def open_input(path: Path) -> BinaryIO:
    """Open the file to read from; ``OctavoError`` if that cannot be done."""
    try:
        return path.open("rb")
    except OSError as error:
        raise OctavoError(f"cannot read {str(path)!r}: {error.strerror or error}") from None


def count_lines(file: BinaryIO) -> int | None:
    """How many lines there are, reading ahead and coming back; None for a pipe."""
    if not file.seekable():
        return None
    count, last = 0, b"\n"
    while chunk := file.read(_CHUNK):
        count += chunk.count(b"\n")
        last = chunk[-1:]
    file.seek(0)
    return count + (last != b"\n")


def read_lines(file: BinaryIO, limit: int = MAX_LINE_BYTES) -> Iterator[tuple[int, bytes | None]]:
    """Number (from 1) and content of each line; None in place of one longer than ``limit`` bytes."""
    number = 0
    while line := file.readline(limit + 1):
        number += 1
        if len(line) > limit and not line.endswith(b"\n"):
            _skip_line(file)
            yield number, None
        else:
            yield number, (line.removeprefix(_BOM) if number == 1 else line).strip()


def _skip_line(file: BinaryIO) -> None:
    while (rest := file.readline(_CHUNK)) and not rest.endswith(b"\n"):
        pass
