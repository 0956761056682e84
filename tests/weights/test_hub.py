"""Downloads from a small hub, each in a process of its own, as the library reads its settings only once."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from helpers_hf import TINY, write_folder
from helpers_hub import COMMIT, Hub, serve
from octavo.errors import ModelError
from octavo.weights.hub import fetch_hub, parse_hub_id

FETCH = """
import json, sys
from octavo.errors import ModelError
from octavo.weights.source import resolve
for model, revision in json.loads(sys.argv[1]):
    try:
        print(resolve(model, revision=revision, progress=False))
    except ModelError as error:
        print("ModelError:", error)
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return (write_folder(tmp_path_factory.mktemp("model")) / "model.safetensors").read_bytes()


@pytest.fixture
def hub(weights: bytes) -> Iterator[Hub]:
    config = json.dumps(TINY).encode()
    whole = {
        "config.json": config,
        "model.safetensors": weights,
        "tokenizer.json": b"{}",
        "chat_template.jinja": b"x",
    }
    unwanted = {
        "pytorch_model.bin": b"\x80",
        "onnx/model.safetensors": b"",
        "README.md": b"",
        "consolidated.safetensors": b"",
    }
    ggufs = {"tiny-Q4_0.gguf": b"GGUF4", "sub/tiny-Q8_0.gguf": b"GGUF8"}
    repos = {
        "me/whole": {**whole, **unwanted},
        "me/gguf": ggufs,
        "me/none": {"config.json": config},
        "me/gated": whole,
    }
    with serve(Hub(repos, gated={"me/gated"})) as hub:
        yield hub


def fetch(hub: Hub | None, home: Path, model: str, revision: str | None = None, **env: str) -> str:
    """The path that ``resolve`` returned or "ModelError: …", always one line."""
    return fetch_all(hub, home, [(model, revision)], **env)[0]


def fetch_all(hub: Hub | None, home: Path, models: list[tuple[str, str | None]], **env: str) -> list[str]:
    """The same for several in one process."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
    settings = {
        "HF_HOME": str(home),
        "HF_ENDPOINT": hub.url if hub else "http://127.0.0.1:9",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "no_proxy": "*",
    }
    command = [sys.executable, "-c", FETCH, json.dumps(models)]
    run = subprocess.run(command, env={**inherited, **settings, **env}, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("\n") == len(models), run.stdout
    return run.stdout.splitlines()


def test_fetches_what_a_model_needs_and_nothing_twice(hub: Hub, tmp_path: Path) -> None:
    folder = Path(fetch(hub, tmp_path, "me/whole"))
    assert folder.name == COMMIT
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert {path.name for path in folder.iterdir()} == wanted
    assert sorted(hub.downloads()) == sorted(wanted)
    assert Path(fetch(hub, tmp_path, "me/whole", revision=COMMIT)) == folder
    assert len(hub.downloads()) == len(wanted)


def test_offline_uses_the_cache_and_says_so_when_it_cannot(hub: Hub, tmp_path: Path) -> None:
    folder = fetch(hub, tmp_path, "me/whole")
    asked = len(hub.requests)
    assert fetch(hub, tmp_path, "me/whole", HF_HUB_OFFLINE="1") == folder
    assert "HF_HUB_OFFLINE" in fetch(hub, tmp_path, "me/gguf", HF_HUB_OFFLINE="1")
    assert len(hub.requests) == asked


def test_no_network_uses_the_cache_and_says_so_when_it_cannot(hub: Hub, tmp_path: Path) -> None:
    folder = fetch(hub, tmp_path, "me/whole")
    assert fetch(None, tmp_path, "me/whole") == folder
    error = fetch(None, tmp_path / "other", "me/whole")
    assert error.startswith("ModelError: me/whole: ")
    assert "hub cannot be reached" in error


def test_a_broken_download_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    content = bytes(range(256)) * (13 << 12)  # 13 MiB: the library writes 10 MiB at once
    hub.repos["me/whole"]["model.safetensors"] = content
    hub.cut_at = {"model.safetensors": 12 << 20}
    first = fetch(hub, tmp_path, "me/whole", HF_HUB_DISABLE_XET="1")
    if first.startswith("ModelError"):  # some versions of the library go on by themselves
        assert "run it again" in first
        first = fetch(hub, tmp_path, "me/whole", HF_HUB_DISABLE_XET="1")
    assert (Path(first) / "model.safetensors").read_bytes() == content
    ranges = [asked for _, path, asked in hub.requests if path.endswith("model.safetensors") and asked]
    assert ranges == [f"bytes={10 << 20}-"]


def test_one_gguf_of_a_repository(hub: Hub, tmp_path: Path) -> None:
    names = ["me/gguf:tiny-Q4_0.gguf", "me/gguf/tiny-Q4_0.gguf", "me/gguf:sub/tiny-Q8_0.gguf"]
    paths = fetch_all(hub, tmp_path, [(name, None) for name in names])
    assert [Path(path).read_bytes() for path in paths] == [b"GGUF4", b"GGUF4", b"GGUF8"]
    assert hub.downloads() == ["tiny-Q4_0.gguf", "tiny-Q8_0.gguf"]


FAILURES: dict[tuple[str, str | None], str] = {
    ("me/missing", None): "no such repository",
    ("me/whole", "v9"): "no revision 'v9'",
    ("me/gated", None): "accepted its terms",
    ("me/none", None): "has no .safetensors files; nor any .gguf",
    ("me/gguf", None): "accepted: me/gguf:sub/tiny-Q8_0.gguf, me/gguf:tiny-Q4_0.gguf",
    ("me/gguf:tiny.gguf", None): "no file tiny.gguf; accepted: me/gguf:sub/tiny-Q8_0.gguf",
    ("me/whole:[a-z]*.gguf", None): "no file [a-z]*.gguf; nor any .gguf",
    ("me/bad--name", None): "not a valid repository name",
}


def test_each_failure_is_one_line(hub: Hub, tmp_path: Path) -> None:
    for line, says in zip(fetch_all(hub, tmp_path, [*FAILURES]), FAILURES.values(), strict=True):
        assert line.startswith("ModelError: me/")
        assert says in line


def test_a_token_opens_a_gated_repository(hub: Hub, tmp_path: Path) -> None:
    assert Path(fetch(hub, tmp_path, "me/gated", HF_TOKEN=hub.token)).name == COMMIT


def test_a_cache_that_cannot_be_written(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = fetch(hub, tmp_path / "file" / "home", "me/whole")
    assert error.startswith("ModelError: me/whole: ")
    assert "set HF_HOME" in error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full; set HF_HOME"),
        (
            OSError(errno.EACCES, "Permission denied", "/cache"),
            "cannot be stored in /cache (Permission denied)",
        ),
        (RuntimeError("peer closed\nmore"), "failed (RuntimeError: peer closed); run it again"),
        (RuntimeError(), "failed (RuntimeError: RuntimeError)"),
    ],
    ids=str,
)
def test_whatever_the_library_raises_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, says: str) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelError) as caught:
        fetch_hub("me/whole")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("owner/name", ("owner/name", None)),
        ("Owner-1/na.me_2", ("Owner-1/na.me_2", None)),
        ("o/n:f-Q4_K_M.gguf", ("o/n", "f-Q4_K_M.gguf")),
        ("o/n/sub/f.gguf", ("o/n", "sub/f.gguf")),
        ("o/n/f.bin", None),
        ("name", None),
        ("./o/n", None),
        ("/o/n", None),
        ("../n", None),
        ("o/", None),
        ("", None),
        ("o/n\n", None),
    ],
)
def test_what_names_a_repository(model: str, expected: tuple[str, str | None] | None) -> None:
    assert parse_hub_id(model) == expected
