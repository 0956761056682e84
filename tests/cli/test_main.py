"""``octavo`` itself: help, exit codes, one-line errors."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import click
import pytest

from helpers_cli import environment
from octavo.cli import main as cli_main
from octavo.cli.main import COMMANDS, main
from octavo.errors import OctavoError
from octavo.version import __version__


def outcome(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, list[str]]:
    """Exit code, standard output, and the lines of standard error."""
    with pytest.raises(SystemExit) as exit_:
        main(list(arguments))
    captured = capsys.readouterr()
    code = exit_.value.code
    assert isinstance(code, int)
    return code, captured.out, captured.err.splitlines()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["run", "--help"],
        ["batch", "-h"],
        ["bench", "-h"],
        ["bench", "latency", "-h"],
        ["bench", "profile", "-h"],
    ],
)
def test_help_imports_neither_torch_nor_transformers(arguments: list[str]) -> None:
    code = (
        "import sys; from octavo.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as e: assert e.code == 0, e.code\n"
        "print([m for m in ('torch', 'transformers', 'tokenizers', 'numpy', 'jinja2') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert len(done.stdout.splitlines()) > 1


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = outcome(capsys, "--help")
    assert (code, err) == (0, [])
    for name, (_, help_) in COMMANDS.items():
        assert any(line.split()[:1] == [name] and help_ in line for line in out.splitlines())


def test_every_command_is_where_it_is_said_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        code, out, _ = outcome(capsys, name, "--help")
        assert code == 0
        assert f"octavo {name}" in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(capsys, "--version") == (0, f"octavo, version {__version__}\n", [])


@pytest.mark.parametrize("arguments", [[], ["run"], ["batch"], ["bench"], ["bench", "latency"]])
def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    code, out, err = outcome(capsys, *arguments)
    assert (code, err) == (2, [])
    assert out.startswith("Usage: octavo")


BAD_USAGE = {
    "bach": "did you mean 'batch'",
    "zzz": "accepted: run, serve, batch, bench",
    "--bad": "No such option '--bad'",
    "bench latnecy": "Did you mean 'latency'",
    "bench latency m --iterations 0": "x>=1",
    "bench latency m --input-len 5:2": "accepted: N from 1, or A:B",
    "bench throughput m --concurrency 2 --max-num-seqs 3": "are the same option",
    "bench profile m --prompt 9 --rows 2": "accepted without --rows and --context",
    "bench profile m --rows 9 --max-num-seqs 8": "up to 8 is accepted",
    "bench profile m --steps 0": "x>=1",
    "bench profile m --trace /": "'/' is a folder",
    "bench startup m --runs 0": "x>=1",
    "bench startup m --max-num-seqs 0": "max_num_seqs=0; accepted: a positive whole number",
    "bench throughput m --json /": "'/' is a folder",
    "run m p --dtype float17": "'auto', 'float32', 'bfloat16', 'float16'",
    "run m p --tmeperature 1": "--temperature",
    "run m p -n many": "is not a valid integer",
    "run m p -n 0": "max_tokens=0 is out of range; accepted: a whole number from 1",
    "run m p -t 101": "temperature=101.0 is out of range; accepted: from 0 to 100",
    "run m p --stop=": "stop takes non-empty strings",
    "run m p more": "unexpected extra argument",
    "run m --raw": "--raw takes a prompt",
    "run m p --chat-template /nowhere": "cannot read the chat template",
    "run m p --kv-cache-memory lots": "accepted: 4G, 512M",
    "run m p --max-num-seqs 0": "max_num_seqs=0; accepted: a positive whole number",
    "run m p --device gpu": "accepted: auto, cpu",
    "run m p --gpu-memory-utilization 2": "accepted: above 0, at most 1",
    "serve m --tool-call-parser zzz": "accepted: auto, none, qwen3_coder",
    "serve m --reasoning-parser zzz": "there is no reasoning format 'zzz'",
    "serve m --port 70000": "is not in the range 0<=x<=65535",
    "batch m": "Missing argument",
    "batch m in.jsonl": "Missing option '-o'",
    "pull": "Missing argument 'MODEL'",
}


@pytest.mark.parametrize("command", BAD_USAGE)
def test_bad_usage_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, err = outcome(capsys, *command.split())
    assert (code, out, len(err)) == (2, "", 1)
    assert err[0].startswith("octavo: ")
    assert BAD_USAGE[command] in err[0]


BAD_FILES = {
    "run ./nowhere p": "./nowhere: no such file or folder",
    "run smolm2-135m p": "did you mean 'smollm2-135m'",
    "run {empty} p": "has no config.json",
    "bench latency {empty}": "has no config.json",
    "batch m {empty}/none.jsonl -o {empty}/out": "none.jsonl': No such file or directory",
    "bench startup ./nowhere": "./nowhere: no such file or folder",
    "bench startup {empty}": "has no config.json",
    "bench profile m --trace {empty}/no/where.json": "no such folder",
    "bench latency m --json {empty}/no/where.json": "no such folder",
    "inspect {empty}": "has no config.json",
}


@pytest.mark.parametrize("command", BAD_FILES)
def test_a_bad_file_is_one_line_and_code_1(capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str) -> None:
    code, out, err = outcome(capsys, *command.format(empty=tmp_path).split())
    assert (code, out, len(err)) == (1, "", 1)
    assert BAD_FILES[command] in err[0]


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (OctavoError("first\nsecond"), 1, ["octavo: first second"]),
        (OSError(28, "No space left on device", "out"), 1, ["octavo: [Errno 28] No space left on device: 'out'"]),
        (click.BadParameter("no"), 2, ["octavo: Invalid value: no"]),
        (KeyboardInterrupt(), 130, [""]),
    ],
)
def test_errors_leave_as_a_line_and_a_code(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    lines: list[str],
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setitem(COMMANDS, "fail", ("octavo.cli.main:fail", "Fails."))
    monkeypatch.setattr(cli_main, "fail", click.Command("fail", callback=fail), raising=False)
    assert outcome(capsys, "fail") == (code, "", lines)


def test_letters_that_the_terminal_does_not_have_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    say = click.Command("say", callback=lambda: click.echo("naïve 😀"))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="latin-1"))
    monkeypatch.setitem(COMMANDS, "say", ("octavo.cli.main:say", "Says."))
    monkeypatch.setattr(cli_main, "say", say, raising=False)
    with pytest.raises(SystemExit) as exit_:
        main(["say"])
    assert (exit_.value.code, shown.getvalue()) == (0, "naïve ?\n".encode("latin-1"))
