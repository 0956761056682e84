"""A file or a folder that appears under its name when it is whole, or not at all.

It is written beside its place, brought to the disk, and renamed. Whatever ends the writing (a full disk, Ctrl-C),
nothing stays behind, and what was there before is as it was.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from octavo.errors import OctavoError, UsageError


@contextmanager
def replacing(target: Path, *, force: bool) -> Iterator[Path]:
    """Yield a path inside a new folder beside ``target`` to write a file or to make a folder at; then rename it.

    Args:
        target: the file or folder to be.
        force: whether something that is there already may be replaced.

    Raises:
        UsageError: there is something and ``force`` is False, or there is no folder to write in.
        OctavoError: the system refused: no permission, no room.
        OSError: of another file, which the block was reading.
    """
    check_target(target, force=force)
    try:
        beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise _cannot_write(target, error) from None
    try:
        new = beside / target.name
        yield new
        _sync(new)
        _swap(new, target, beside / "replaced")
        _sync_folder(target.parent)
    except OSError as error:
        if _is_elsewhere(error, target, beside):
            raise
        raise _cannot_write(target, error) from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def check_target(target: Path, *, force: bool) -> None:
    """Raise ``UsageError`` at once for a place that could not be written to in the end."""
    if target.name in ("", "..") or not target.parent.is_dir():
        raise UsageError(f"{str(target)!r} cannot be written: {str(target.parent)!r} is no folder")
    if not os.path.lexists(target):
        return
    if not force:
        raise UsageError(f"{str(target)!r} is there already; accepted: a new name, or --force to replace it")
    if target.is_symlink() or not (target.is_file() or target.is_dir()):
        raise UsageError(f"{str(target)!r} is no plain file or folder and is not replaced; accepted: another name")
    if target.is_dir() and not _is_export(target):
        raise UsageError(f"{str(target)!r} is no exported model and is not replaced; accepted: another name")


def _is_export(folder: Path) -> bool:
    """Whether a folder is empty, or what an export writes. Another may hold anything, and is not this program's to
    delete.
    """
    inside = list(folder.iterdir())
    names = {path.name for path in inside}
    model = "config.json" in names and any(name.endswith(".safetensors") for name in names)
    return not inside or (model and not any(path.is_dir() for path in inside))


def check_room(folder: Path, needed: int) -> None:
    """Raise ``OctavoError``, before the work and not after it, if ``folder``'s disk has too little room."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OctavoError(f"{needed:,} bytes are needed in {str(folder)!r}; {free:,} are free")


def _cannot_write(target: Path, error: OSError) -> OctavoError:
    return OctavoError(f"cannot write {str(target)!r}: {error.strerror or error}")


def _is_elsewhere(error: OSError, target: Path, beside: Path) -> bool:
    """Whether an error is of a file that has no part in the writing. A full disk's names none."""
    if not isinstance(error.filename, str):
        return False
    place = Path(error.filename)
    return place not in (target, target.parent, beside) and beside not in place.parents


def _swap(new: Path, target: Path, old: Path) -> None:
    """Give ``new`` the name ``target``; what had that name goes to ``old``, or comes back if this fails."""
    if not target.exists() or (target.is_file() and new.is_file()):
        os.replace(new, target)
        return
    try:
        os.rename(target, old)
        os.rename(new, target)
    except BaseException:
        if old.exists() and not target.exists():
            os.rename(old, target)
        raise


def _sync(path: Path) -> None:
    """Bring a file, or a folder and its files, to the disk."""
    if not path.is_dir():
        _sync_file(path)
        return
    for file in path.iterdir():
        _sync_file(file)
    _sync_folder(path)


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    with suppress(OSError):  # systems without it (Windows) keep names safe by themselves
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
