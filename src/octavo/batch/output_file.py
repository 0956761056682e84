"""The output of a batch: lines are appended whole, and what an earlier run wrote is found again.

A kill may leave the beginning of a line behind, which lacks its newline. It is cut off before the next is written.
"""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import msgspec

from octavo.batch.lines import PREFIX, SeenLine
from octavo.errors import OctavoError, UsageError


@dataclass(slots=True)
class Done:
    """What has been answered: by custom id, or by line where there is no custom id of its own."""

    custom_ids: set[str] = field(default_factory=set)
    line_ids: set[str] = field(default_factory=set)

    def add(self, line: SeenLine) -> None:
        key = line.key
        if key is None:
            self.line_ids.add(line.id)
        else:
            self.custom_ids.add(key)


class OutputFile:
    """A file of answers, open for appending, and locked against a second batch.

    Args:
        path: where it is, or shall be.
        overwrite: forget what is there.

    Attributes:
        done: what an earlier run answered.

    Raises:
        UsageError: it holds something else than answers, is a folder, or another batch is writing to it.
        OctavoError: it cannot be opened.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        self.path = path
        self.done = Done()
        self._fd = _open(path)
        try:
            self._lock()
            self._size = 0
            if stat.S_ISREG(os.fstat(self._fd).st_mode):
                self._size = 0 if overwrite else self._scan()
        except BaseException:
            os.close(self._fd)
            raise

    def begin(self) -> None:
        """Cut off what is not to be kept. Until then nothing is changed: the model may yet turn out not to load."""
        if stat.S_ISREG(os.fstat(self._fd).st_mode):
            os.ftruncate(self._fd, self._size)

    def append(self, line: bytes) -> None:
        """Write a line that ends with a newline, after `begin`. It survives a kill of this process from then on.

        Raises ``OctavoError`` if that cannot be done (the disk is full); the file then ends with the line before.
        """
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except BaseException as error:
            with suppress(OSError):
                os.ftruncate(self._fd, self._size)
            if isinstance(error, OSError):
                raise OctavoError(f"cannot write to {str(self.path)!r}: {error.strerror or error}") from None
            raise
        self._size += len(line)

    def close(self) -> None:
        """Let go of the file once its content is on the disk."""
        with suppress(OSError):  # a pipe has no disk
            os.fsync(self._fd)
        os.close(self._fd)

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another batch is writing to {str(self.path)!r}") from None
        except OSError:  # a file system without locks
            pass

    def _scan(self) -> int:
        """Note what is done, and return where the last whole line ends."""
        size = 0
        with self.path.open("rb") as file:
            self._check_beginning(file)
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                self.done.add(self._decode(number, line))
                size += len(line)
        return size

    def _check_beginning(self, file: BinaryIO) -> None:
        """Someone else's file must be neither appended to nor cut off, nor be read whole if it is one long line."""
        found = file.read(len(PREFIX))
        file.seek(0)
        if not PREFIX.startswith(found):
            raise self._foreign(1)

    def _decode(self, number: int, line: bytes) -> SeenLine:
        try:
            return msgspec.json.decode(line, type=SeenLine)
        except (msgspec.MsgspecError, RecursionError):
            raise self._foreign(number) from None

    def _foreign(self, number: int) -> UsageError:
        return UsageError(
            f"line {number} of {str(self.path)!r} is not an answer of a batch; give another file, or --overwrite"
        )


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    except IsADirectoryError:
        raise UsageError(f"{str(path)!r} is a folder; accepted: a file to write to") from None
    except OSError as error:
        raise OctavoError(f"cannot write to {str(path)!r}: {error.strerror or error}") from None
