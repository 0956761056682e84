"""``octavo batch``: a file of OpenAI batch requests in, a file of answers out."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from octavo.cli.interrupt import interrupts_between_steps
from octavo.cli.options import engine_options, load, lora_option, read_text_file, split_engine_options
from octavo.errors import OctavoError, UsageError

if TYPE_CHECKING:
    from tqdm import tqdm

    from octavo.batch.output_file import OutputFile
    from octavo.batch.runner import Tally
    from octavo.llm import LLM


@click.command(no_args_is_help=True)
@click.argument("model")
@click.argument("input", metavar="IN.jsonl", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", metavar="OUT.jsonl", required=True, type=click.Path(path_type=Path), help="Where the answers go."
)
@click.option("--overwrite", is_flag=True, help="Start anew, whatever is in OUT.jsonl.")
@click.option("--chat-template", metavar="FILE", help="A Jinja chat template instead of the model's own.")
@click.option("--seed", type=int, help="Of the requests that bring none [0].")
@lora_option
@engine_options
def batch(
    model: str,
    input: Path,
    output: Path,
    overwrite: bool,
    chat_template: str | None,
    loras: tuple[tuple[str, str], ...],
    **options: Any,
) -> None:
    """Answer the requests in IN.jsonl, one a line, in OpenAI's batch format.

    Urls: /v1/chat/completions and /v1/completions. Answers are written as they are done. A request that cannot be
    served gets an answer with status 400, and stops nothing. A request whose model is the name of an adapter gets it.
    Stopped or killed, the same command goes on where it was.
    """
    from octavo.batch.input_file import open_input
    from octavo.batch.output_file import OutputFile

    given = split_engine_options(options) | {k: v for k, v in options.items() if v is not None}
    if chat_template is not None:
        given["chat_template"] = read_text_file("the chat template", chat_template)
    with open_input(input) as source:
        _refuse_same_file(source, output)
        with OutputFile(output, overwrite=overwrite) as out, load(model, given, loras) as llm:
            _run(llm, source, out)


def _refuse_same_file(source: BinaryIO, output: Path) -> None:
    if output.exists() and os.path.samestat(os.fstat(source.fileno()), output.stat()):
        raise UsageError("input and output are the same file; the answers need a file of their own")


def _run(llm: LLM, source: BinaryIO, out: OutputFile) -> None:
    from octavo.batch.input_file import count_lines, read_lines
    from octavo.batch.runner import BatchRunner

    runner = BatchRunner(llm, out)
    start = time.monotonic()
    try:
        with interrupts_between_steps() as check, _progress(count_lines(source)) as bar:
            runner.run(read_lines(source), check, lambda: _advance(bar, runner.tally))
    except (KeyboardInterrupt, OctavoError):
        click.echo(f"stopped: {_summary(runner.tally, start)}; the same command goes on from here", err=True)
        raise
    click.echo(_summary(runner.tally, start), err=True)


@contextmanager
def _progress(total: int | None) -> Iterator[tqdm]:
    """A progress bar over lines, on a terminal only."""
    from tqdm import tqdm

    with tqdm(total=total, desc="batch", unit="line", disable=None, dynamic_ncols=True) as bar:
        yield bar


def _advance(bar: tqdm, tally: Tally) -> None:
    if tally.lines > bar.n and not bar.disable:
        bar.set_postfix_str(_rates(tally, bar.format_dict["elapsed"]), refresh=False)
        bar.update(tally.lines - bar.n)


def _summary(tally: Tally, start: float) -> str:
    """One line: what has become of the lines, and how fast."""
    parts = [f"{tally.answered} answered", f"{tally.refused} refused"]
    parts += [f"{tally.failed} failed"] if tally.failed else []
    parts += [f"{tally.skipped} skipped"] if tally.skipped else []
    seconds = time.monotonic() - start
    return f"{', '.join(parts)} in {seconds:.1f} s ({_rates(tally, seconds)})"


def _rates(tally: Tally, seconds: float) -> str:
    seconds = max(seconds, 1e-9)
    return f"prompt {tally.prompt_tokens / seconds:.0f} tok/s, output {tally.output_tokens / seconds:.0f} tok/s"
