"""What an export wrote, and how far each tensor is from the one that it was made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

CHUNK = 1 << 22
"""Weights compared at a time."""


@dataclass(frozen=True, slots=True)
class TensorError:
    """One tensor that was written.

    Attributes:
        name: Hugging Face's.
        kind: how it is stored: "BF16", "Q8_0", "int4 g32", ….
        shape: rows first.
        nbytes: in the file, scales included.
        relative_rms: root mean square of the difference over that of the original.
        largest: of the absolute differences.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    nbytes: int
    relative_rms: float
    largest: float


@dataclass(slots=True)
class ExportReport:
    """An export as a whole. ``notes`` are sentences for the user: what could not be written, and why."""

    model: str
    path: str
    format: str
    dtype: str
    quantize: str | None
    nbytes: int = 0
    seconds: float = 0.0
    files: list[str] = field(default_factory=list)
    tensors: list[TensorError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def tensor_error(name: str, kind: str, nbytes: int, original: Tensor, written: Tensor) -> TensorError:
    """Compare float tensors of the same shape, in float64 sums over pieces."""
    difference = square = largest = 0.0
    flat, other = original.reshape(-1), written.reshape(-1)
    for a, b in zip(flat.split(CHUNK), other.split(CHUNK), strict=True):
        gap = b.float() - a.float()
        difference += float(gap.double().square().sum())
        square += float(a.double().square().sum())
        largest = max(largest, float(gap.abs().max()) if gap.numel() else 0.0)
    relative = (difference / square) ** 0.5 if square else float(difference > 0)
    return TensorError(name, kind, tuple(original.shape), nbytes, relative, largest)


def results(report: ExportReport) -> dict[str, Any]:
    """Plain values, as JSON has them."""
    import msgspec

    return msgspec.to_builtins(report)


def error_columns(tensors: Sequence[TensorError]) -> list[list[str]]:
    """The lines of a table: a heading, then each tensor that is not exactly what it was made of."""
    heading = ["tensor", "stored as", "shape", "relative RMS", "largest error"]
    changed = [tensor for tensor in tensors if tensor.relative_rms > 0]
    return [
        heading,
        *([_cell(t.name), t.kind, _shape(t), f"{t.relative_rms:.3e}", f"{t.largest:.3e}"] for t in changed),
    ]


def summary_rows(report: ExportReport) -> list[tuple[str, str]]:
    """Label and text of each line about the whole."""
    worst = max(report.tensors, key=lambda tensor: tensor.relative_rms, default=None)
    rows = [
        ("written", f"{report.path} ({report.nbytes:,} bytes, {len(report.files)} files)"),
        ("format", f"{report.format}, {report.quantize or report.dtype}"),
        ("tensors", f"{len(report.tensors)}: {_kinds(report.tensors)}"),
        ("seconds", f"{report.seconds:.1f}"),
    ]
    if worst is not None and worst.relative_rms > 0:
        rows.append(("worst tensor", f"{worst.name}, relative RMS {worst.relative_rms:.2e}"))
    return [*rows, *(("note", note) for note in report.notes)]


def _kinds(tensors: Sequence[TensorError]) -> str:
    counts: dict[str, int] = {}
    for tensor in tensors:
        counts[tensor.kind] = counts.get(tensor.kind, 0) + 1
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())


def _shape(tensor: TensorError) -> str:
    return " x ".join(map(str, tensor.shape))


def _cell(name: str) -> str:
    return name.encode("ascii", "backslashreplace").decode()
