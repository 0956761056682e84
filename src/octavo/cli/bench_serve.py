"""``octavo bench serve``: load on a server, ours or any that speaks OpenAI's API."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from octavo.cli.bench_options import json_option, length_option, progress, show
from octavo.errors import OctavoError, UsageError

if TYPE_CHECKING:
    from octavo.bench.serve.outcome import Outcome
    from octavo.bench.serve.plan import Planned
    from octavo.bench.serve.processes import Driven
    from octavo.bench.serve.prompts import PromptMaker
    from octavo.bench.serve.target import Target

SHARE = click.FloatRange(0, 1)


@click.command()
@click.argument("url", default="http://127.0.0.1:8000")
@click.option("--model", metavar="NAME", help="Model to ask for; else the first one that the server has.")
@click.option("--api", type=click.Choice(["completions", "chat"]), default="completions", show_default=True)
@click.option("--api-key", metavar="KEY", envvar="OPENAI_API_KEY", help="Or OPENAI_API_KEY.")
@click.option("--num-prompts", type=click.IntRange(1), default=100, show_default=True, metavar="N", help="Requests.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), metavar="R", help="Requests a second; else all now.")
@click.option("--arrivals", type=click.Choice(["poisson", "gamma", "constant"]), default="poisson", show_default=True)
@click.option("--burstiness", type=click.FloatRange(0, min_open=True), metavar="B", help="Of gamma: below 1: bursts.")
@click.option("--ramp", type=click.FloatRange(0), default=0.0, metavar="S", help="Seconds until the full rate.")
@click.option("--concurrency", type=click.IntRange(1), metavar="N", help="Most requests at once.")
@length_option("--input-len", "128", "Prompt tokens.")
@length_option("--output-len", "64", "Output tokens.")
@click.option("--trace", type=click.Path(path_type=Path), metavar="FILE", help="Lengths and times from JSON lines.")
@click.option("--prefix-len", type=click.IntRange(0), default=0, metavar="N", help="Shared tokens before each prompt.")
@click.option("--prefixes", type=click.IntRange(1), default=1, show_default=True, metavar="K", help="Different ones.")
@click.option("--tokenizer", metavar="PLACE", help="Makes prompts of exact lengths; else lengths are in words.")
@click.option("--prompt-ids", type=click.IntRange(1), metavar="VOCAB", help="Prompts as token ids below VOCAB.")
@click.option("--ignore-eos/--no-ignore-eos", default=True, show_default=True, help="Ask for answers of full length.")
@click.option("--extra-body", metavar="JSON", default="{}", help="Fields for each request: '{\"temperature\": 0}'.")
@click.option("--warmup", type=click.IntRange(0), default=1, show_default=True, metavar="N", help="Requests before.")
@click.option("--goodput", metavar="BOUNDS", multiple=True, help="In ms: 'ttft:500 itl:50'; also tpot, e2e.")
@click.option("--disconnect", type=SHARE, default=0.0, metavar="SHARE", help="Of requests that hang up.")
@click.option("--malformed", type=SHARE, default=0.0, metavar="SHARE", help="Of requests that are wrong.")
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Of the client.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=600.0, metavar="S", help="Of a request.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of prompts, lengths and times.")
@json_option
def serve(**options: Any) -> None:
    """Load on the OpenAI-compatible server at URL: tokens a second, and how long requests take.

    Requests are streamed. With --rate they are sent when they are due, answered or not.
    """
    from octavo.bench.environment import describe_machine
    from octavo.bench.report import check_writable
    from octavo.bench.serve.figures import figures_of, parse_bounds
    from octavo.bench.serve.server import describe_server
    from octavo.bench.serve.text import figures_text

    json_file = options.pop("json_file")
    if json_file is not None:
        check_writable(json_file)
    _check(options)
    options["url"] = options["url"].rstrip("/").removesuffix("/v1")  # as clients want it
    bounds = parse_bounds(" ".join(options["goodput"])) if options["goodput"] else {}
    extra, plan = _extra_body(options["extra_body"]), _plan(options)
    server = describe_server(options["url"], options["api_key"], options["model"])
    driven = _run(_target(options, server["served_model"], extra), plan, options)
    figures = figures_of(driven.outcomes, bounds, driven.busy)
    environment, text = {**server, **describe_machine()}, figures_text(figures)
    show(environment, "serve", _asked(options), text, figures.as_values(), json_file)
    if figures.errors and not figures.completed:
        raise OctavoError(f"no request was answered: {next(iter(figures.errors))}")


def _target(options: dict[str, Any], model: str, extra: dict[str, Any]) -> Target:
    from octavo.bench.serve.target import Target

    same = {name: options[name] for name in ("url", "api", "api_key", "ignore_eos", "timeout")}
    return Target(model=model, extra=extra, **same)


def _run(target: Target, plan: list[Planned], options: dict[str, Any]) -> Driven:
    """Warm the server up, then measure."""
    from octavo.bench.serve.processes import run_load

    if warmup := _warmup(plan, options["warmup"]):
        _check_warmup(run_load(target, warmup, concurrency=1).outcomes)
    with progress("requests", len(plan)) as bar:
        return run_load(target, plan, options["concurrency"], options["processes"], bar.update)


def _check(options: dict[str, Any]) -> None:
    """What cannot be said of one option alone."""
    if not options["url"].startswith(("http://", "https://")):
        raise UsageError(f"{options['url']!r} is no server's address; accepted: http://HOST:PORT")
    if options["burstiness"] is not None and options["arrivals"] != "gamma":
        raise UsageError("--burstiness is a gamma process's; accepted with --arrivals gamma")
    if options["ramp"] and options["rate"] is None:
        raise UsageError("--ramp needs a --rate to grow to")
    if options["tokenizer"] and options["prompt_ids"]:
        raise UsageError("--tokenizer and --prompt-ids both make the prompts; accepted: one of them")
    if options["prompt_ids"] and options["api"] == "chat":
        raise UsageError("a chat takes no token ids; accepted: --prompt-ids with --api completions")
    if options["disconnect"] + options["malformed"] > 1:
        raise UsageError("--disconnect and --malformed are shares of all requests; accepted: up to 1 together")
    if options["concurrency"] is not None and options["concurrency"] < options["processes"]:
        raise UsageError("--concurrency is shared by the processes; accepted: from --processes")


def _extra_body(text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise UsageError(f"--extra-body {text!r:.60} is no JSON object; accepted: '{{\"temperature\": 0}}'")
    return fields


def _plan(options: dict[str, Any]) -> list[Planned]:
    from octavo.bench.serve.arrivals import Arrivals
    from octavo.bench.serve.prompts import Prefixes
    from octavo.bench.serve.trace import read_trace
    from octavo.bench.serve.workload import Workload

    rate = math.inf if options["rate"] is None else options["rate"]
    workload = Workload(
        count=options["num_prompts"],
        input_len=options["input_len"],
        output_len=options["output_len"],
        arrivals=Arrivals(rate, options["arrivals"], options["burstiness"] or 1.0, options["ramp"]),
        trace=read_trace(options["trace"]) if options["trace"] else None,
        prefixes=Prefixes(options["prefix_len"], options["prefixes"]),
        disconnect=options["disconnect"],
        malformed=options["malformed"],
    )
    return workload.plan(random.Random(options["seed"]), _prompt_maker(options))


def _prompt_maker(options: dict[str, Any]) -> PromptMaker:
    from octavo.bench.serve.prompts import exact_words, plain_words, token_ids

    if options["prompt_ids"]:
        return token_ids(options["prompt_ids"])
    if options["tokenizer"] is None:
        return plain_words()
    from octavo.text.tokenizer import load_tokenizer
    from octavo.weights.source import resolve

    return exact_words(load_tokenizer(resolve(options["tokenizer"])))


def _warmup(plan: list[Planned], count: int) -> list[Planned]:
    """The plan's first proper requests, one after the other."""
    import msgspec

    proper = [p for p in plan if p.malformed is None and p.leave_after is None]
    return [msgspec.structs.replace(p, at=0.0) for p in proper[:count]]


def _check_warmup(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        if outcome.error is not None:
            said = f": {outcome.said}" if outcome.said else ""
            raise OctavoError(f"the first request failed: {outcome.error}{said}")


def _asked(options: dict[str, Any]) -> dict[str, Any]:
    """The options that say what was done. A key is none of them."""
    hidden = ("url", "api_key", "model")
    return {name: _plain(value) for name, value in options.items() if name not in hidden and value not in (None, ())}


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, tuple):
        return " ".join(value)
    return value if isinstance(value, bool | int | float | str) else str(value)
