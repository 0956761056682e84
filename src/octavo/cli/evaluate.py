"""``octavo eval``: how well a model does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from octavo.cli.interrupt import interrupts_between_steps
from octavo.cli.options import engine_options, load, read_text_file, split_engine_options
from octavo.errors import UsageError

if TYPE_CHECKING:
    from octavo.evaluate.perplexity import Perplexity
    from octavo.llm import LLM


@click.group(name="eval", no_args_is_help=True)
def evaluate() -> None:
    """Measure how well a model predicts a text: to see what quantization costs, say."""


@evaluate.command(no_args_is_help=True)
@click.argument("model")
@click.argument("file", type=click.Path())
@click.option("--context", type=click.IntRange(2), metavar="N", help="Tokens of a window.  [default: up to 2048]")
@click.option(
    "--stride", type=click.IntRange(1), metavar="N", help="Tokens from window to window.  [default: half a window]"
)
@click.option("--limit", type=click.IntRange(2), metavar="N", help="Only the first N tokens of the text.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@engine_options
def perplexity(
    model: str, file: str, context: int | None, stride: int | None, limit: int | None, as_json: bool, **options: Any
) -> None:
    """Perplexity of the text in FILE: the lower, the better MODEL predicts it."""
    text = read_text_file("the text", file)
    if stride is not None and context is not None and stride > context:
        raise UsageError(f"--stride {stride} leaves gaps between windows of {context}; accepted: up to {context}")
    given = split_engine_options(options)
    given.setdefault("enable_prefix_caching", False)
    with load(model, given) as llm, interrupts_between_steps() as check, _progress() as bar:
        from octavo.evaluate.perplexity import measure

        sizes = {"context": context, "stride": stride, "limit": limit}
        found = measure(llm.engine, text, check=check, on_progress=lambda *at: _move(bar, *at), **sizes)
        bar.close()
        _show(llm, model, file, found, as_json)


def _show(llm: LLM, model: str, file: str, found: Perplexity, as_json: bool) -> None:
    import msgspec

    from octavo.bench.report import table

    if as_json:
        about = {"model": model, "file": file, "dtype": llm.config.dtype, "quantization": llm.config.quantization}
        value = {**about, **msgspec.to_builtins(found), "tokens_per_second": found.tokens_per_second}
        click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))
        return
    rows = [
        ("perplexity", f"{found.perplexity:.4f}"),
        ("log-probability", f"{-found.nats_per_token:.5f} a token, {found.bits_per_byte:.4f} bits a byte"),
        ("text", f"{found.tokens + 1:,} tokens, {found.bytes:,} bytes"),
        ("windows", f"{found.windows} of {found.context} tokens, {found.stride} apart"),
        ("speed", f"{found.tokens_per_second:.0f} tokens/s, {found.seconds:.1f} s"),
    ]
    click.echo(table(rows))


def _progress() -> Any:
    from tqdm import tqdm

    return tqdm(total=None, desc="tokens", unit="tok", leave=False, disable=None, dynamic_ncols=True)


def _move(bar: Any, done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)
