"""Whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from octavo.errors import OctavoError, UsageError
from octavo.export.atomic import check_room, replacing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def make_export(folder: Path) -> list[str]:
    """A folder that looks like an exported model; its names."""
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes(b"old")
    return names(folder)


def write_half(place: Path, error: BaseException, *, force: bool = False) -> None:
    with replacing(place, force=force) as new:
        new.mkdir()
        (new / "half").write_bytes(b"abc")
        raise error


def test_a_file_is_there_at_the_end(tmp_path: Path) -> None:
    with replacing(tmp_path / "out.bin", force=False) as new:
        new.write_bytes(b"abc")
        assert not (tmp_path / "out.bin").exists()
    assert (tmp_path / "out.bin").read_bytes() == b"abc"
    assert names(tmp_path) == ["out.bin"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nothing_stays_behind(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        write_half(tmp_path / "out", error())
    assert names(tmp_path) == []


def test_what_was_there_survives_a_failure(tmp_path: Path) -> None:
    old = make_export(tmp_path / "out")
    with pytest.raises(OctavoError, match="No space"):
        write_half(tmp_path / "out", OSError(28, "No space left on device"), force=True)
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == old


@pytest.mark.parametrize("call", [1, 2])
def test_what_was_there_survives_an_interrupted_exchange(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C right behind the first renaming, or instead of the second."""
    old, rename, calls = make_export(tmp_path / "out"), os.rename, []

    def interrupted(*args: Path) -> None:
        calls.append(args)
        if len(calls) != 2 or call != 2:
            rename(*args)
        if len(calls) == call:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "out", force=True) as new:
        new.mkdir()
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == old


@pytest.mark.parametrize("others", [["config.json", "a.safetensors", "sub/x"], ["config.json", "x"], ["x"]])
def test_a_folder_of_something_else_is_not_replaced(others: list[str], tmp_path: Path) -> None:
    for name in others:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_bytes(b"precious")
    with pytest.raises(UsageError, match="another name"), replacing(tmp_path / "out", force=True):
        pytest.fail("it was let in")
    assert all((tmp_path / "out" / name).read_bytes() == b"precious" for name in others)


def test_an_empty_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with replacing(tmp_path / "out", force=True) as new:
        new.write_bytes(b"new")
    assert (tmp_path / "out").read_bytes() == b"new"


def test_an_error_of_reading_is_no_error_of_writing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "out", force=False):
        (tmp_path / "source").read_bytes()
    expected = pytest.raises(OctavoError, match=r"cannot write '.*/out': No such file")
    with expected, replacing(tmp_path / "out", force=False) as new:
        new.read_bytes()
    assert names(tmp_path) == []


@pytest.mark.parametrize("is_folder", [True, False])
def test_force_replaces(tmp_path: Path, is_folder: bool) -> None:
    old = tmp_path / "out"
    if is_folder:
        make_export(old)
    else:
        old.write_bytes(b"old")
    with pytest.raises(UsageError, match="--force"), replacing(old, force=False):
        pytest.fail("it was let in")
    with replacing(old, force=True) as new:
        new.mkdir()
        (new / "new").write_bytes(b"new")
    assert names(tmp_path) == ["out"]
    assert names(old) == ["new"]


def test_places_that_cannot_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no folder"), replacing(tmp_path / "no" / "out", force=False):
        pytest.fail("it was let in")
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(UsageError, match="no plain file"), replacing(tmp_path / "link", force=True):
        pytest.fail("it was let in")


def test_room_is_looked_at_first(tmp_path: Path) -> None:
    check_room(tmp_path, 1)
    with pytest.raises(OctavoError, match="are free"):
        check_room(tmp_path, 1 << 60)
