"""``octavo export``."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from helpers_cli import environment, make_chat_model, octavo_process, wait_until
from octavo.cli.export import export
from octavo.errors import OctavoError, UsageError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_chat_model(tmp_path / "model")


def test_prints_each_tensor_that_has_changed(model: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(export, [str(model), str(tmp_path / "out.gguf"), "--quantize", "int8"])
    assert result.exit_code == 0, result.exception
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["tensor", "stored", "as", "shape", "relative", "RMS", "largest", "error"]
    assert any(line.startswith("model.layers.1.mlp.up_proj.weight  ") and " Q8_0 " in line for line in lines)
    assert not any("input_layernorm" in line for line in lines)
    assert any(line.startswith("format") and line.endswith("gguf, int8") for line in lines)


def test_json(model: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(export, [str(model), str(tmp_path / "out"), "--quantize", "fp8", "--json"])
    report = json.loads(result.stdout)
    assert report["format"] == "safetensors"
    assert report["nbytes"] == sum(f.stat().st_size for f in (tmp_path / "out").iterdir())
    kinds = {tensor["name"]: tensor["kind"] for tensor in report["tensors"]}
    assert kinds["model.layers.0.self_attn.q_proj.weight"] == "fp8"
    assert kinds["lm_head.weight"] == "F32"


def test_the_model_itself_is_never_replaced(model: Path) -> None:
    before = sorted((f.name, f.stat().st_mtime_ns) for f in model.iterdir())
    for out in (model, model.parent):
        result = CliRunner().invoke(export, [str(model), str(out), "--force"])
        assert isinstance(result.exception, UsageError)
        assert "another place" in str(result.exception)
    assert sorted((f.name, f.stat().st_mtime_ns) for f in model.iterdir()) == before


def test_a_relative_model_is_not_replaced_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor if its folder looks like an exported model's."""
    folder = make_chat_model(tmp_path / "model")
    assert CliRunner().invoke(export, [str(folder), str(folder.parent / "m.gguf")]).exit_code == 0
    (tmp_path / "m.gguf").rename(folder / "m.gguf")
    monkeypatch.chdir(tmp_path)
    before = sorted(f.name for f in folder.iterdir())
    for model in ("model/m.gguf", "./model/m.gguf", "model/../model/m.gguf"):
        result = CliRunner().invoke(export, [model, "model", "--force"])
        assert isinstance(result.exception, UsageError)
        assert "another place" in str(result.exception)
    assert sorted(f.name for f in folder.iterdir()) == before


def test_nothing_is_written_into_the_models_folder(model: Path) -> None:
    before = sorted(f.name for f in model.iterdir())
    for name in ("new.gguf", "model.safetensors", "new"):
        result = CliRunner().invoke(export, [str(model), str(model / name), "--force"])
        assert isinstance(result.exception, UsageError)
        assert "another place" in str(result.exception)
    assert sorted(f.name for f in model.iterdir()) == before


def test_the_tokenizer_is_never_replaced(model: Path, tmp_path: Path) -> None:
    words = make_chat_model(tmp_path / "words")
    before = sorted(f.name for f in words.iterdir())
    for out, tokenizer in ((words, words), (words, words / "tokenizer.json")):
        result = CliRunner().invoke(export, [str(model), str(out), "--force", "--tokenizer", str(tokenizer)])
        assert isinstance(result.exception, UsageError)
        assert "is the tokenizer" in str(result.exception)
    assert sorted(f.name for f in words.iterdir()) == before


def test_a_file_that_cannot_be_read(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(model / "tokenizer.json"))

    monkeypatch.setattr("octavo.export.hugging_face.write_tokenizer", refuse)
    result = CliRunner().invoke(export, [str(model), str(tmp_path / "out")])
    assert isinstance(result.exception, OctavoError)
    assert str(result.exception) == f"cannot read '{model}/tokenizer.json': Permission denied"
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_not_overwritten(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_bytes(b"precious")
    result = CliRunner().invoke(export, [str(model), str(out)])
    assert "--force" in str(result.exception)
    assert out.read_bytes() == b"precious"
    assert CliRunner().invoke(export, [str(model), str(out), "--force"]).exit_code == 0
    assert out.read_bytes()[:4] == b"GGUF"


def test_a_full_disk_leaves_nothing_behind(model: Path, tmp_path: Path) -> None:
    """A limit on the size of files makes the system refuse to write, as a full disk does."""
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "from octavo.cli.main import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code, "export", str(model), str(tmp_path / "out")]
    run = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith(f"octavo: cannot write '{tmp_path}/out': File too large")
    assert "Traceback" not in run.stderr
    assert [f.name for f in tmp_path.iterdir()] == ["model"]


def test_ctrl_c_leaves_nothing_behind(model: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    os.rename(model / "tokenizer_config.json", tmp_path / "kept")
    os.symlink(tmp_path / "pipe", model / "chat_template.jinja")  # reading it waits for ever
    process = octavo_process("export", model, tmp_path / "out")
    wait_until(lambda: any(f.name.startswith(".out.") for f in tmp_path.iterdir()), process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert sorted(f.name for f in tmp_path.iterdir()) == ["kept", "model", "pipe"]
