"""From a name to a place; neither pip nor the hub is asked here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from octavo.errors import ModelError, UsageError
from octavo.weights import source
from octavo.weights.source import resolve


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What ``resolve`` would have fetched."""
    calls: list[tuple[Any, ...]] = []

    def hub(repo: str, revision: str | None, *, progress: bool, file: str | None) -> Path:
        calls.append((repo, revision, progress, file))
        return Path("/hub")

    def bundled(alias: str, progress: bool) -> Path:
        calls.append((alias, progress))
        return Path("/bundled")

    monkeypatch.setattr(source, "fetch_hub", hub)
    monkeypatch.setattr(source, "fetch_bundled", bundled)
    return calls


def test_an_alias(asked: list[tuple[Any, ...]]) -> None:
    assert resolve("smollm2-135m", progress=False) == Path("/bundled")
    assert asked == [("smollm2-135m", False)]


@pytest.mark.parametrize(
    ("model", "repo", "file"),
    [("o/n", "o/n", None), ("o/n:f.gguf", "o/n", "f.gguf"), ("o/n/f.gguf", "o/n", "f.gguf")],
)
def test_a_hub_repository(asked: list[tuple[Any, ...]], model: str, repo: str, file: str | None) -> None:
    assert resolve(model, revision="v1") == Path("/hub")
    assert asked == [(repo, "v1", True, file)]


def test_what_exists_comes_before_the_hub(
    asked: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "o" / "n").mkdir(parents=True)
    for name in ("o/n", tmp_path / "o" / "n", "./o", str(tmp_path)):
        assert resolve(name) == Path(name)
    assert resolve("~/o") == tmp_path / "o"
    assert not asked


@pytest.mark.parametrize(
    "model",
    [
        "./x",
        "/x",
        "../x",
        "~/x",
        "x.gguf",
        "m/x.gguf",
        "a/b/c",
        "a/b/c.bin",
        "x.safetensors",
        "/" + "x" * 5000,
    ],
)
def test_a_missing_path_is_not_asked_of_the_hub(asked: list[tuple[Any, ...]], model: str) -> None:
    with pytest.raises(ModelError, match="no such file or folder"):
        resolve(model)
    assert not asked


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("smollm2-135", r"did you mean 'smollm2-135m'\?\); accepted: an alias \(smollm2-135m, gemma3-270m\), a folder"),
        ("llama", r"no model 'llama'; accepted: .* owner/name on the Hugging Face hub"),
        ("", "the model's name is empty"),
        ("a\0b", "no model"),
    ],
)
def test_what_is_nothing_says_what_would_be_accepted(asked: list[tuple[Any, ...]], model: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        resolve(model)
    assert not asked


@pytest.mark.parametrize("model", ["smollm2-135m", ".", "llama", "./x"])
def test_only_a_hub_repository_has_revisions(asked: list[tuple[Any, ...]], model: str) -> None:
    with pytest.raises(UsageError, match="revision='v1' is for a hub repository"):
        resolve(model, revision="v1")
    assert not asked
