"""What the commands of ``octavo bench`` share: options, a progress bar, and how results are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from octavo.bench.workload import LengthRange
from octavo.cli.options import Decorator
from octavo.errors import UsageError


class Length(click.ParamType):
    """``N`` or ``A:B`` tokens."""

    name = "length"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> LengthRange:
        if isinstance(value, LengthRange):
            return value
        try:
            return LengthRange.parse(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


def length_option(name: str, default: str, help_: str) -> Decorator:
    return click.option(name, type=Length(), default=default, show_default=True, metavar="N|A:B", help=help_)


json_option = click.option(
    "--json", "json_file", metavar="FILE", type=click.Path(path_type=Path), help="Also write JSON."
)


def workload_options(input_len: str, output_len: str) -> Decorator:
    """Lengths, seed and ``--json``."""

    def decorate(command: Any) -> Any:
        for option in (
            json_option,
            click.option("--seed", type=int, default=0, show_default=True, help="Of the random tokens."),
            length_option("--output-len", output_len, "Output tokens."),
            length_option("--input-len", input_len, "Prompt tokens."),
        ):
            command = option(command)
        return command

    return decorate


def progress(what: str, total: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc=what, leave=False, disable=None, dynamic_ncols=True)


def show(
    environment: dict[str, Any], name: str, asked: dict[str, Any], text: str, results: Any, json_file: Path | None
) -> None:
    """Print what was measured on what, and write it."""
    from octavo.bench.report import table, write_json

    options = [(key.replace("_", " "), str(value)) for key, value in asked.items()]
    described = [(key.replace("_", " "), str(value)) for key, value in environment.items()]
    click.echo(f"{table(described)}\n\n{table(options)}\n\n{text}")
    if json_file is not None:
        write_json(json_file, {"benchmark": name, "options": asked, "results": results, "environment": environment})
