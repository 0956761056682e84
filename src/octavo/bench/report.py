"""Figures as a table for people, and as JSON for programs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from octavo.bench.latency import Timings
from octavo.bench.summary import Summary
from octavo.bench.throughput import Throughput
from octavo.errors import OctavoError, UsageError

Row = tuple[str, str]
TEXT_WIDTH = 70


def throughput_rows(result: Throughput) -> list[Row]:
    """Label and text of each line of the table."""
    names = {"prompt": "prompt tok/s", "output": "output tok/s", "total": "total tok/s", "requests": "requests/s"}
    rates = [(names[key.split("_")[0]], f"{rate:.2f}") for key, rate in result.rates.items()]
    return [
        ("requests", str(result.requests)),
        ("prompt tokens", str(result.prompt_tokens)),
        ("output tokens", str(result.output_tokens)),
        ("seconds", f"{result.seconds:.3f}"),
        *rates,
        ("steps", str(result.steps)),
        ("step time", summary_text(result.step_time)),
        ("preemptions", str(result.preemptions)),
    ]


def latency_rows(timings: Timings) -> list[Row]:
    """Label and text of each line of the table."""
    return [(name.replace("_", " "), summary_text(summary)) for name, summary in timings.summaries().items()]


def summary_text(summary: Summary | None) -> str:
    """In milliseconds."""
    if summary is None:
        return "none"
    parts = (("median", summary.median), ("p90", summary.p90), ("p99", summary.p99), ("mean", summary.mean))
    return ", ".join(f"{name} {1000 * value:.2f} ms" for name, value in parts)


def table(rows: Sequence[Row]) -> str:
    """Aligned lines."""
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {text}" for label, text in rows)


def columns(lines: Sequence[Sequence[str]], text: int) -> str:
    """Lines of the same number of cells, aligned to the right; those of the column ``text`` to the left, and cut to
    ``TEXT_WIDTH``.
    """
    cells = [[cell[:TEXT_WIDTH] if i == text else cell for i, cell in enumerate(line)] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    aligned = (
        [f"{c:{'<' if i == text else '>'}{w}}" for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        for line in cells
    )
    return "\n".join("  ".join(line).rstrip() for line in aligned)


def throughput_results(result: Throughput) -> dict[str, Any]:
    """Plain values: the counts, and the rates they give."""
    return {**msgspec.to_builtins(result), **result.rates}


def latency_results(timings: Timings) -> dict[str, Any]:
    """Plain values: the summaries, in seconds."""
    return msgspec.to_builtins(timings.summaries())


def check_writable(path: Path) -> None:
    """Raise before the benchmark, not after it, if its report will have no place."""
    if path.is_dir():
        raise UsageError(f"{str(path)!r} is a folder; accepted: a file to write to")
    if not os.access(path.parent, os.W_OK):
        raise OctavoError(f"cannot write to {str(path)!r}: no such folder, or no permission")


def write_json(path: Path, value: Any) -> None:
    """Write the whole file or nothing. Raises ``OctavoError``."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(text)
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        raise OctavoError(f"cannot write to {str(path)!r}: {error.strerror or error}") from None


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
