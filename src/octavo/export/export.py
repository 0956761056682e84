"""Write a model in another form: the one function behind ``octavo export``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from octavo.config import DTYPES
from octavo.errors import ModelError, OctavoError, UsageError
from octavo.export import gguf, hugging_face, llama2c
from octavo.export.atomic import check_room, check_target, replacing
from octavo.export.report import ExportReport
from octavo.export.sources import Source
from octavo.quantization.schemes import SCHEMES
from octavo.weights.checkpoint import Checkpoint

FORMATS = ("safetensors", "gguf", "llama2c")

DEFAULT_SHARD_SIZE = 5 * 10**9

_BITS = {"int8": 9, "w8a8": 9, "q8_0": 9, "fp8": 9, "int4": 6, "q4_0": 6, "q4_1": 6}
"""More than a weight takes, its part of the scales included; by how the scheme's name begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """How to write a model.

    Attributes:
        format: one of ``FORMATS``.
        dtype: "auto" (the checkpoint's own; float32 for llama2c) or a dtype's name: of what is not quantized.
        quantize: a scheme, or None.
        max_shard_size: bytes of a safetensors file.
        force: replace what is there.
    """

    format: str = "safetensors"
    dtype: str = "auto"
    quantize: str | None = None
    max_shard_size: int = DEFAULT_SHARD_SIZE
    force: bool = False

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UsageError(f"format {self.format!r} is not supported; accepted: {', '.join(FORMATS)}")
        if self.dtype not in ("auto", *DTYPES):
            raise UsageError(f"dtype {self.dtype!r} is not supported; accepted: auto, {', '.join(DTYPES)}")
        if self.format == "llama2c" and self.dtype not in ("auto", "float32"):
            raise UsageError(f"dtype {self.dtype} is not in the layout of llama2.c; accepted: float32")
        if self.max_shard_size < 1:
            raise UsageError(f"max_shard_size={self.max_shard_size}; accepted: a positive number of bytes")


def export_model(
    checkpoint: Checkpoint,
    out: Path,
    options: ExportOptions,
    *,
    tokenizer: Path | None = None,
    name: str | None = None,
    progress: Callable[[int], Any] = lambda nbytes: None,
) -> ExportReport:
    """Write ``checkpoint`` to ``out``: a folder for safetensors, else a file. It is there when this returns, or not at
    all.

    Args:
        tokenizer: where the tokenizer is; None: with the model.
        name: what the model is called in the report and in the file.
        progress: called with the bytes of each tensor that is done.

    Raises:
        UsageError: an option is not possible, or ``out`` is there already.
        ModelError: the model is damaged, or has no place in the format.
        OctavoError: the disk is full, or may not be written to; a file cannot be read.
    """
    begin = time.monotonic()
    dtype = "float32" if options.format == "llama2c" else options.dtype
    dtype = checkpoint.config.dtype if dtype == "auto" else dtype
    report = ExportReport(name or str(checkpoint.path), str(out), options.format, dtype, options.quantize)
    source = Source(checkpoint, tokenizer or checkpoint.path, getattr(torch, dtype), report, progress)
    _check_place(source, out, options)
    try:
        with _target(source, out, options) as new:
            _write(source, new, options)
            files = sorted(new.iterdir()) if new.is_dir() else [new]
            report.files += [file.name for file in files]
            report.nbytes += sum(file.stat().st_size for file in files)
    except OSError as error:  # those of writing are told by `replacing`
        raise OctavoError(f"cannot read {str(error.filename)!r}: {error.strerror or error}") from None
    report.seconds = time.monotonic() - begin
    return report


def _check_place(source: Source, out: Path, options: ExportOptions) -> None:
    """Refuse what cannot end well before anything is read: the model itself as the target, too little room."""
    for path, what in ((source.checkpoint.path, "the model"), (source.tokenizer, "the tokenizer")):
        if _holds(out, path):
            raise UsageError(f"{str(out)!r} is {what} that is to be exported, or holds it; accepted: another place")
    if source.checkpoint.path.is_dir() and source.checkpoint.path.resolve() in out.resolve().parents:
        raise UsageError(f"{str(out)!r} is in the folder of the model that is to be exported; accepted: another place")
    check_target(out, force=options.force)
    check_room(out.parent, estimate(source, options))


def _holds(out: Path, path: Path) -> bool:
    """Whether ``out`` is ``path`` or a folder above it: where it stands, and where it leads if it is a link."""
    place = out.resolve()
    stands, leads = path.parent.resolve() / path.name, path.resolve()
    return (out.exists() and path.exists() and out.samefile(path)) or any(
        place in (p, *p.parents) for p in (stands, leads)
    )


def estimate(source: Source, options: ExportOptions) -> int:
    """About how many bytes will be written; scales and headers included, the tokenizer not."""
    weights = sum(math.prod(tensor.shape) for tensor in source.tensors())
    matrices = sum(math.prod(tensor.shape) for tensor in source.tensors() if hugging_face.is_linear(tensor))
    plain = 8 * source.dtype.itemsize
    bits = max(_BITS.get(name.partition("-")[0], plain) for name in _schemes(source, options))
    return ((weights - matrices) * plain + matrices * min(bits, plain)) // 8


def _schemes(source: Source, options: ExportOptions) -> set[str]:
    """Of all matrices, or of those that have the finest; "" for none."""
    how = SCHEMES.get(options.quantize or "")
    if how is None or options.format != "gguf":
        return {options.quantize or ""}
    return {how.name, how.fitted(source.checkpoint.config.hidden_size).for_sensitive.name}


@contextmanager
def _target(source: Source, out: Path, options: ExportOptions) -> Iterator[Path]:
    """Where to write; llama2.c's tokenizer is a file of its own, beside the model."""
    if options.format != "llama2c" or not llama2c.can_write_tokenizer(source.tokenizer):
        if options.format == "llama2c":
            source.report.notes.append("no tokenizer.bin was written: llama2.c needs a SentencePiece tokenizer")
        with replacing(out, force=options.force) as new:
            yield new
        return
    place = out.parent / "tokenizer.bin"
    if out.name.casefold() == place.name:
        raise UsageError(f"{str(out)!r} is where the tokenizer goes; accepted: another name for the model")
    if place.exists() and place.samefile(source.tokenizer):
        raise UsageError(f"{str(place)!r} belongs to the model that is to be exported; accepted: another folder")
    with replacing(out, force=options.force) as new, replacing(place, force=options.force) as words:
        llama2c.write_tokenizer(source.tokenizer, words)
        source.report.files.append(place.name)
        source.report.nbytes += words.stat().st_size
        yield new


def _write(source: Source, new: Path, options: ExportOptions) -> None:
    match options.format:
        case "safetensors":
            hugging_face.write(source, new, options.quantize, options.max_shard_size)
        case "gguf":
            gguf.write(source, new, options.quantize)
        case "llama2c":
            llama2c.write(source, new, options.quantize)
    if not source.report.tensors:
        raise ModelError("the model has no tensors")
