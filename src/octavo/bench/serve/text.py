"""The figures of a load as a table for people."""

from __future__ import annotations

from octavo.bench.report import Row, columns, table
from octavo.bench.serve.figures import Figures
from octavo.bench.summary import Summary

BUSY = 0.8
"""From this share on the client may have been the limit."""

_HEAD = ("", "mean", "median", "p90", "p95", "p99")


def figures_text(figures: Figures) -> str:
    """Counts and rates, then times in milliseconds, then what an operator should know before he believes them."""
    times = [
        _line("time to first token", figures.time_to_first_token),
        _line("between tokens", figures.inter_token),
        _line("time per output token", figures.time_per_output_token),
        _line("end to end", figures.end_to_end),
        _line("sent late", figures.lateness),
    ]
    parts = [table(_rows(figures)), columns([_HEAD, *times], 0), *_warnings(figures)]
    return "\n\n".join(parts)


def _rows(figures: Figures) -> list[Row]:
    rates = {name.replace("_per_second", "/s").replace("_", " "): rate for name, rate in figures.rates.items()}
    errors = ", ".join(f"{count} x {kind}" for kind, count in figures.errors.items())
    rows = [
        ("requests", str(figures.requests)),
        ("completed", str(figures.completed)),
        ("hung up", str(figures.left) if figures.left else ""),
        ("malformed, refused", str(figures.malformed) if figures.malformed else ""),
        ("errors", errors or "none"),
        ("seconds", f"{figures.seconds:.3f}"),
        ("prompt tokens", str(figures.prompt_tokens)),
        ("output tokens", str(figures.output_tokens)),
        *((name, f"{rate:.2f}") for name, rate in rates.items()),
        (_bounds(figures), "" if figures.goodput is None else f"{figures.goodput:.2f} requests/s"),
        ("client busy", f"{figures.busy:.0%}"),
    ]
    return [row for row in rows if row[1]]


def _bounds(figures: Figures) -> str:
    return "goodput (" + " ".join(f"{name}:{1000 * bound:g}" for name, bound in figures.bounds.items()) + ")"


def _line(name: str, summary: Summary | None) -> tuple[str, ...]:
    if summary is None:
        return (name, *["none"] * (len(_HEAD) - 1))
    values = (summary.mean, summary.median, summary.p90, summary.p95, summary.p99)
    return (name, *(f"{1000 * value:.2f} ms" for value in values))


def _warnings(figures: Figures) -> list[str]:
    if figures.busy < BUSY:
        return []
    return ["The client may have been the limit: it computed most of the time. More --processes give it more room."]
