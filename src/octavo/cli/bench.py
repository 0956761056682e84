"""``octavo bench``: figures, with all that is needed to judge them."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from octavo.bench.workload import LengthRange, Work, random_work
from octavo.cli.bench_options import json_option, progress, show, workload_options
from octavo.cli.bench_serve import serve
from octavo.cli.interrupt import interrupts_between_steps
from octavo.cli.options import engine_options, load, split_engine_options
from octavo.errors import UsageError

if TYPE_CHECKING:
    from octavo.llm import LLM

ROWS, CONTEXT = 64, 1024
ONE_TOKEN_MORE = LengthRange(2, 2)  # so that warming up sees a decode step too


@click.group(no_args_is_help=True)
def bench() -> None:
    """Measure with random tokens; --load-format dummy needs no weights, only a config."""


bench.add_command(serve)


@bench.command(no_args_is_help=True)
@click.argument("model")
@click.option("--num-prompts", type=click.IntRange(1), default=32, show_default=True, metavar="N", help="Requests.")
@workload_options("128", "64")
@click.option("--concurrency", type=click.IntRange(1), metavar="N", help="Most requests at once: --max-num-seqs.")
@engine_options
def throughput(
    model: str,
    num_prompts: int,
    input_len: LengthRange,
    output_len: LengthRange,
    concurrency: int | None,
    seed: int,
    json_file: Path | None,
    **options: Any,
) -> None:
    """Tokens and requests a second, all being there at the start."""
    from octavo.bench.report import throughput_results, throughput_rows
    from octavo.bench.throughput import measure_throughput

    given = _engine_options(options, concurrency, seed, json_file)
    asked = {"num_prompts": num_prompts, "input_len": str(input_len), "output_len": str(output_len), "seed": seed}
    with load(model, given) as llm, interrupts_between_steps() as check:
        rng, vocab_size = random.Random(seed), llm.engine.model_config.vocab_size
        work = random_work(rng, num_prompts, vocab_size, input_len, output_len)
        measure_throughput(llm.engine, _warm_up(rng, vocab_size), check)
        with progress("requests", num_prompts) as bar:
            result = measure_throughput(llm.engine, work, check, lambda done: _move_to(bar, done))
        _report(llm, "throughput", asked, throughput_rows(result), throughput_results(result), json_file)


@bench.command(no_args_is_help=True)
@click.argument("model")
@workload_options("128", "64")
@click.option(
    "--batch-size", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Requests at once."
)
@click.option("--iterations", type=click.IntRange(1), default=5, show_default=True, metavar="N", help="Measured runs.")
@click.option("--warmup", type=click.IntRange(0), default=1, show_default=True, metavar="N", help="Runs before these.")
@engine_options
def latency(
    model: str,
    input_len: LengthRange,
    output_len: LengthRange,
    batch_size: int,
    iterations: int,
    warmup: int,
    seed: int,
    json_file: Path | None,
    **options: Any,
) -> None:
    """Time to the first token, between tokens, and in all."""
    from octavo.bench.latency import measure_latency
    from octavo.bench.report import latency_results, latency_rows

    given = _engine_options(options, None, seed, json_file)
    asked = {"input_len": str(input_len), "output_len": str(output_len), "batch_size": batch_size}
    asked |= {"iterations": iterations, "warmup": warmup, "seed": seed}
    with load(model, given) as llm, interrupts_between_steps() as check:
        rng, vocab_size = random.Random(seed), llm.engine.model_config.vocab_size
        runs = [random_work(rng, batch_size, vocab_size, input_len, output_len) for _ in range(warmup + iterations)]
        measure_latency(llm.engine, runs[:warmup], check)
        with progress("iterations", iterations) as bar:
            timings = measure_latency(llm.engine, runs[warmup:], check, bar.update)
        _report(llm, "latency", asked, latency_rows(timings), latency_results(timings), json_file)


@bench.command(no_args_is_help=True)
@click.argument("model")
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True, metavar="N", help="Processes to start.")
@json_option
@engine_options
def startup(model: str, runs: int, json_file: Path | None, **options: Any) -> None:
    """From the start of a process to a ready engine and to the first token, part by part.

    The first run has no compiled kernels, the others have those that it made. The model is fetched beforehand.
    """
    from octavo.bench.report import columns
    from octavo.bench.startup import measure_startup, startup_columns, startup_results
    from octavo.config import EngineConfig
    from octavo.weights.source import resolve

    given = _checked(split_engine_options(options), json_file)
    config = EngineConfig.from_kwargs(model, **given)
    resolve(model, revision=config.revision)
    with progress("runs", runs) as bar:
        result = measure_startup(model, given, runs, bar.update)
    text = columns(startup_columns(result), 0)
    show(result.environment, "startup", {"runs": runs}, text, startup_results(result), json_file)


@bench.command(no_args_is_help=True)
@click.argument("model")
@click.option("--rows", type=click.IntRange(1), metavar="N", help=f"Requests that decode at once.  [default: {ROWS}]")
@click.option("--context", type=click.IntRange(1), metavar="N", help=f"Tokens of each.  [default: {CONTEXT}]")
@click.option("--prompt", type=click.IntRange(1), metavar="N", help="Record one prompt of N tokens, not decode steps.")
@click.option("--steps", type=click.IntRange(1), default=10, show_default=True, metavar="N", help="To time and record.")
@click.option(
    "--trace", metavar="FILE", type=click.Path(path_type=Path), help="Write a Chrome trace (ui.perfetto.dev)."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random tokens.")
@json_option
@engine_options
def profile(
    model: str,
    rows: int | None,
    context: int | None,
    prompt: int | None,
    steps: int,
    trace: Path | None,
    seed: int,
    json_file: Path | None,
    **options: Any,
) -> None:
    """Where a step's time goes, kernel by kernel: of decode steps, or of one prompt."""
    if prompt is not None and (rows or context):
        raise UsageError("--prompt is one request; accepted without --rows and --context, which are for decode steps")
    rows, context = (1, prompt) if prompt is not None else (rows or ROWS, context or CONTEXT)
    given = _checked({**_with_room(split_engine_options(options), rows), "seed": seed}, json_file, trace)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else torch's profiler tells when it starts and stops
    with load(model, given) as llm, interrupts_between_steps() as check:
        from octavo.bench.environment import describe_environment
        from octavo.bench.profile import Recorder, profile_decode, profile_prompt

        recorder, rng = Recorder(steps, steps if prompt is None else 1, trace, check), random.Random(seed)
        if prompt is None:
            result = profile_decode(llm.engine, rows, context, recorder, rng)
        else:
            result = profile_prompt(llm.engine, prompt, recorder, rng)
        asked = {"rows": rows, "context": context} if prompt is None else {"prompt": prompt}
        environment = describe_environment(llm.engine)
    from octavo.bench.profile import profile_columns, profile_results, profile_rows
    from octavo.bench.report import columns, table

    text = f"{table(profile_rows(result))}\n\n{columns(profile_columns(result), 4)}"
    show(environment, "profile", {**asked, "steps": steps, "seed": seed}, text, profile_results(result), json_file)


def _with_room(given: dict[str, Any], rows: int) -> dict[str, Any]:
    """The engine's options, with place for ``rows`` requests at once."""
    from octavo.config import EngineConfig

    most = given.get("max_num_seqs", max(EngineConfig.max_num_seqs, rows))
    if rows > most:
        raise UsageError(f"--rows {rows} is more than --max-num-seqs {most}; up to {most} is accepted")
    return {**given, "max_num_seqs": most}


def _engine_options(
    options: dict[str, Any], concurrency: int | None, seed: int, json_file: Path | None
) -> dict[str, Any]:
    """The engine's options, once all that can be wrong without a model has been checked."""
    given = {**split_engine_options(options), "seed": seed}
    if concurrency is not None and given.setdefault("max_num_seqs", concurrency) != concurrency:
        raise UsageError(f"--concurrency {concurrency} and --max-num-seqs {given['max_num_seqs']} are the same option")
    return _checked(given, json_file)


def _checked(given: dict[str, Any], *files: Path | None) -> dict[str, Any]:
    """The options, once the places of the files to write have been looked at."""
    from octavo.bench.report import check_writable

    for file in files:
        if file is not None:
            check_writable(file)
    return given


def _warm_up(rng: random.Random, vocab_size: int) -> list[Work]:
    """One short request: the first step of a process is slower than any other."""
    return random_work(rng, 1, vocab_size, LengthRange(1, 1), ONE_TOKEN_MORE)


def _move_to(bar: Any, done: int) -> None:
    bar.update(done - bar.n)


def _report(
    llm: LLM,
    name: str,
    asked: dict[str, Any],
    rows: list[tuple[str, str]],
    results: dict[str, Any],
    json_file: Path | None,
) -> None:
    from octavo.bench.environment import describe_environment
    from octavo.bench.report import table

    show(describe_environment(llm.engine), name, asked, table(rows), results, json_file)
