"""``octavo check``: the engine against itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from octavo.cli.options import engine_options, split_engine_options
from octavo.errors import OctavoError

if TYPE_CHECKING:
    from octavo.check.check import CheckReport
    from octavo.check.pairs import PairResult


@click.command(no_args_is_help=True)
@click.argument("model")
@click.option("--quick", is_flag=True, help="Fewer and shorter requests.")
@click.option("--layers", is_flag=True, help="Also compare layer by layer with the reference.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@engine_options
def check(model: str, quick: bool, layers: bool, as_json: bool, **options: Any) -> int:
    """Compare what MODEL says on ways that must agree: cached and uncached, chunked and whole, batched and alone, with
    the device's kernels and the reference's, and others. Exit code 1 if any pair differs."""
    from octavo.config import EngineConfig

    config = EngineConfig.from_kwargs(model, **split_engine_options(options))
    from octavo.build_engine import find_tokenizer
    from octavo.check.check import check_model
    from octavo.weights.open import open_checkpoint
    from octavo.weights.source import resolve

    path = resolve(model, revision=config.revision)
    checkpoint = open_checkpoint(path, weights=config.load_format != "dummy")
    tokenizer = find_tokenizer(config, path, progress=True)
    done: list[PairResult] = []
    try:
        with _progress() as bar:
            report = check_model(
                config, checkpoint, tokenizer, quick=quick, layers=layers, on_pair=lambda pair: _tell(bar, done, pair)
            )
    except OctavoError:
        if done and not as_json:  # what is known by then
            _show_pairs(done)
        raise
    _show(report, as_json)
    return int(report.failed)


def _show(report: CheckReport, as_json: bool) -> None:
    import msgspec

    from octavo.bench.report import table

    if as_json:
        value = {**msgspec.to_builtins(report), "failed": report.failed}
        click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))  # an infinite number becomes null
        return
    about = f"{report.dtype} on {report.device}" + (f", {report.quantization}" if report.quantization else "")
    requests = f"{report.requests} requests, {report.max_tokens} tokens each"
    click.echo(table([("model", report.model), ("computes in", about), ("compared", requests)]) + "\n")
    _show_pairs(report.pairs)
    _show_layers(report)


def _show_pairs(pairs: Sequence[PairResult]) -> None:
    from octavo.bench.report import columns

    click.echo(columns([_HEADING, *map(_cells, pairs)], 0))
    for pair in pairs:
        if pair.reason:
            click.echo(f"{pair.status}: {pair.name}: {pair.reason}" + (f" ({pair.why})" if pair.why else ""))


_HEADING = ["pair", "result", "largest", "mean", "tolerance", "same tokens", "seconds"]


def _cells(pair: PairResult) -> list[str]:
    if not pair.compared:
        return [pair.name, pair.status, "", "", "", "", ""]
    same = f"{pair.agreeing}/{pair.compared}"
    figures = (f"{pair.largest:.2g}", f"{pair.mean:.2g}", f"{pair.tolerance:.2g}", same, f"{pair.seconds:.2f}")
    return [pair.name, pair.status, *figures]


def _show_layers(report: CheckReport) -> None:
    from octavo.bench.report import columns

    if report.layers is None:
        return
    lines = [[part.name, f"{part.relative_rms:.2e}", f"{part.largest:.2e}"] for part in report.layers.parts]
    click.echo("\n" + columns([["part", "relative RMS", "largest"], *lines], 0))
    limit = f"{report.layers.tolerance:g} of relative RMS"
    first = report.layers.first
    click.echo(
        f"no part differs by more than {limit}" if first is None else f"FAIL: {first} is the first beyond {limit}"
    )


def _progress() -> Any:
    from tqdm import tqdm

    from octavo.check.check import NUM_PAIRS

    return tqdm(total=NUM_PAIRS, desc="pairs", leave=False, disable=None, dynamic_ncols=True)


def _tell(bar: Any, done: list[PairResult], pair: PairResult) -> None:
    done.append(pair)
    bar.set_postfix_str(pair.name, refresh=False)
    bar.update()
