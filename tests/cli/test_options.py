"""Options of several commands."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from octavo.cli.options import (
    ENGINE_NAMES,
    ByteSize,
    engine_options,
    read_text_file,
    split_engine_options,
    with_room_for,
)
from octavo.config import QUANTIZATIONS, EngineConfig
from octavo.errors import UsageError


@click.command()
@click.option("--other", default=1)
@engine_options
def command(**options: Any) -> None:
    given = split_engine_options(options)
    click.echo(sorted(given.items()))
    click.echo(options)


def test_only_what_was_given_goes_to_the_engine() -> None:
    assert CliRunner().invoke(command, []).output == "[]\n{'other': 1}\n"
    arguments = [
        "--dtype",
        "float32",
        "--no-prefix-caching",
        "--block-size",
        "8",
        "--kv-cache-memory",
        "1.5K",
        "--debug",
    ]
    expected = [("block_size", 8), ("debug", True), ("dtype", "float32"), ("enable_prefix_caching", False)]
    assert (
        CliRunner().invoke(command, arguments).output == f"{[*expected, ('kv_cache_memory', 1536)]}\n{{'other': 1}}\n"
    )


def test_engine_options_are_fields_of_the_engine_and_no_others() -> None:
    declared = {parameter.name for parameter in command.params} - {"other"}
    assert declared == set(ENGINE_NAMES)
    assert declared <= {field.name for field in fields(EngineConfig)}


TWO = [("a", "/a"), ("b", "/b")]


@pytest.mark.parametrize(
    ("loras", "given", "more", "expected"),
    [
        ([], {}, False, {}),
        (TWO, {}, False, {"max_loras": 2, "max_cpu_loras": 2}),
        (TWO * 3, {}, False, {"max_loras": 4, "max_cpu_loras": 6}),
        (TWO, {"max_loras": 5}, False, {"max_loras": 5, "max_cpu_loras": 5}),
        ([], {}, True, {"max_loras": 4, "max_cpu_loras": 16}),
        (TWO, {}, True, {"max_loras": 4, "max_cpu_loras": 18}),
        (TWO, {"max_loras": 1}, True, {"max_loras": 1, "max_cpu_loras": 6}),
        (TWO, {"max_cpu_loras": 4}, True, {"max_loras": 4, "max_cpu_loras": 4}),
    ],
)
def test_adapters_find_room_and_those_that_come_later_too(
    loras: list[tuple[str, str]], given: dict[str, Any], more: bool, expected: dict[str, Any]
) -> None:
    found = with_room_for(loras, given, more)
    assert found == ({"enable_lora": True, **expected} if expected else {})
    EngineConfig.from_kwargs("m", **found)


@pytest.mark.parametrize(
    ("text", "size"),
    [("7", 7), ("1K", 1024), ("512M", 512 << 20), ("4G", 4 << 30), ("1.5GiB", 3 << 29), ("2 tb", 2 << 40)],
)
def test_byte_sizes(text: str, size: int) -> None:
    assert ByteSize().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "0", "0G", "0.1", "1e9", "4X", "4GG", "inf"])
def test_bad_byte_sizes(text: str) -> None:
    with pytest.raises(click.BadParameter, match="accepted: 4G, 512M"):
        ByteSize().convert(text, None, None)


def test_text_files(tmp_path: Path) -> None:
    (tmp_path / "good").write_text("é")
    (tmp_path / "bad").write_bytes(b"\xff")
    assert read_text_file("the template", str(tmp_path / "good")) == "é"
    for name in ("bad", "none", ""):
        with pytest.raises(UsageError, match="cannot read the template"):
            read_text_file("the template", str(tmp_path / name))


@pytest.mark.parametrize("name", ["int8", "int4-g32", "file", "none"])
def test_quantize(name: str) -> None:
    assert CliRunner().invoke(command, ["--quantize", name]).output == f"[('quantization', '{name}')]\n{{'other': 1}}\n"


def test_an_unknown_quantization_lists_the_known() -> None:
    result = CliRunner().invoke(command, ["--quantize", "int3"])
    assert result.exit_code == 2
    assert all(name in result.output for name in ("int3", *QUANTIZATIONS))
