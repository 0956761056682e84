"""A recorded workload: one request a line, when it came and how long it was."""

from __future__ import annotations

from pathlib import Path

import msgspec

from octavo.errors import UsageError

MAX_LENGTH = 10_000_000


class Recorded(msgspec.Struct, frozen=True):
    """A line. The names are those of Mooncake's traces: https://github.com/kvcache-ai/Mooncake

    Attributes:
        timestamp: milliseconds from the start; None: `Arrivals` say when.
        input_length: tokens of a prompt that is made up; not used where there is a ``prompt``.
    """

    output_length: int
    input_length: int | None = None
    timestamp: float | None = None
    prompt: str | list[int] | None = None


def read_trace(path: Path) -> list[Recorded]:
    """The requests of a JSONL file, in its order. Fields that are not known are left alone.

    Raises:
        UsageError: the file cannot be read, is empty, or a line is something else.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(f"cannot read the trace {str(path)!r}: {error.strerror}") from None
    requests = [_read(line, f"{path}, line {i}") for i, line in enumerate(lines, 1) if line.strip()]
    if not requests:
        raise UsageError(f"{path} is empty; accepted: a line of JSON for each request")
    if len({request.timestamp is None for request in requests}) > 1:
        raise UsageError(f"{path}: either all lines have a timestamp or none")
    return requests


def _read(line: bytes, place: str) -> Recorded:
    try:
        request = msgspec.json.decode(line, type=Recorded)
    except msgspec.MsgspecError as error:
        raise UsageError(f"{place}: {error}") from None
    if not 1 <= request.output_length <= MAX_LENGTH:
        raise UsageError(f"{place}: output_length={request.output_length}; accepted: from 1 to {MAX_LENGTH}")
    if request.prompt is None and not 1 <= (request.input_length or 0) <= MAX_LENGTH:
        raise UsageError(f"{place}: accepted: a prompt, or an input_length from 1 to {MAX_LENGTH}")
    if request.timestamp is not None and not 0 <= request.timestamp < 1e12:
        raise UsageError(f"{place}: timestamp={request.timestamp}; accepted: milliseconds from the start")
    return request
