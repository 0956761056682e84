"""``octavo export``: a model in another format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from octavo.cli.options import ByteSize
from octavo.config import DTYPES

_SUFFIXES = {".gguf": "gguf", ".bin": "llama2c"}


@click.command(no_args_is_help=True)
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "format_",
    type=click.Choice(["safetensors", "gguf", "llama2c"]),
    help="Else by OUT: .gguf, .bin (llama2c), or a folder of safetensors.",
)
@click.option("--dtype", type=click.Choice(["auto", *DTYPES]), default="auto", help="Of what is not quantized.")
@click.option(
    "--quantize", metavar="SCHEME", help="int8, int4, fp8, … (safetensors); int8, int4, q4_0 (gguf); int8 (llama2c)."
)
@click.option("--tokenizer", metavar="PLACE", help="Where the tokenizer is, if not with the model.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a hub repository.")
@click.option("--max-shard-size", type=ByteSize(), default="5000000000", help="Of a safetensors file.  [default: 5 GB]")
@click.option("--force", is_flag=True, help="Replace what is there.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def export(
    model: str,
    out: Path,
    format_: str | None,
    dtype: str,
    quantize: str | None,
    tokenizer: str | None,
    revision: str | None,
    max_shard_size: int,
    force: bool,
    as_json: bool,
) -> None:
    """Write MODEL to OUT, whole or not at all, and report how far each tensor is from the original."""
    from octavo.export.export import ExportOptions, export_model
    from octavo.weights.open import open_checkpoint
    from octavo.weights.source import resolve

    format_ = format_ or _SUFFIXES.get(out.suffix, "safetensors")
    options = ExportOptions(format=format_, dtype=dtype, quantize=quantize, max_shard_size=max_shard_size, force=force)
    checkpoint = open_checkpoint(resolve(model, revision=revision))
    words = None if tokenizer is None else resolve(tokenizer, revision=None)
    with _progress(sum(tensor.nbytes for tensor in checkpoint.tensors())) as bar:
        report = export_model(checkpoint, out, options, tokenizer=words, name=model, progress=bar.update)
    _show(report, as_json)


def _show(report: Any, as_json: bool) -> None:
    from octavo.bench.report import columns, table
    from octavo.export.report import error_columns, results, summary_rows

    if as_json:
        click.echo(json.dumps(results(report), indent=2))
        return
    lines = error_columns(report.tensors)
    if len(lines) > 1:
        click.echo(columns(lines, 0) + "\n")
    click.echo(table(summary_rows(report)))


def _progress(total: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc="exporting", unit="B", unit_scale=True, unit_divisor=1024, leave=False, disable=None)
