"""A child process that answers questions from outsiders under limits, and is replaced when one of them kills it.

Some input can only be judged by working on it: a chat template by rendering it, a grammar by compiling it. No guard
within a process sees all the ways in which that may take hours, fill the memory or overflow the stack. The operating
system does: the child sets its own limits. A question and its answer are one line of JSON each.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from octavo.errors import RequestError


class DiedError(Exception):
    """The child died of a question, or did not answer in time.

    Attributes:
        status: its exit status; the negative number of a signal.
    """

    def __init__(self, status: int | None) -> None:
        super().__init__(f"exit status {status}")
        self.status = status


def shared_process(script: Path, purpose: str, wall_seconds: float) -> LimitedProcess:
    """This process's child for ``script``; a fork does not share its parent's. For the rest see `LimitedProcess`."""
    return _shared(os.getpid(), script, purpose, wall_seconds)


@lru_cache
def _shared(owner: int, script: Path, purpose: str, wall_seconds: float) -> LimitedProcess:
    process = LimitedProcess(script, purpose, wall_seconds)
    atexit.register(lambda: process.close() if os.getpid() == owner else None)
    return process


class LimitedProcess:
    """The child, started when first asked. Safe to share between threads: they take turns."""

    def __init__(self, script: Path, purpose: str, wall_seconds: float) -> None:
        """``script`` reads lines and writes lines; ``purpose`` completes "the process that …" in an error;
        ``wall_seconds`` are a backstop for a machine so busy that the script's own limits take this long.
        """
        self._script, self._purpose, self._wall_seconds = script, purpose, wall_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = Lock()

    def start(self) -> None:
        """Start the child, unless it runs. ``RequestError``: it cannot be started."""
        with self._lock:
            self._running()

    def ask(self, question: bytes) -> dict[str, Any]:
        """Send one line, return the answer.

        Raises:
            DiedError: there is none. RequestError: the child cannot be started.
        """
        with self._lock:
            try:
                line = self._exchange(self._running(), question + b"\n")
            except BaseException:
                self._stop()  # or its answer would be taken for that to the next question
                raise
            if line.endswith(b"\n"):
                return json.loads(line)
            raise DiedError(self._stop())

    def close(self) -> None:
        """End the child; the next ``ask`` starts another."""
        with self._lock:
            self._stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self._stop()
        if self._process is None:
            self._process = self._start()
        return self._process

    def _start(self) -> subprocess.Popen[bytes]:
        """Run the script by itself, with the modules that this process can import, deaf to Ctrl-C."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        try:
            return subprocess.Popen(
                [sys.executable, "-P", str(self._script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            why = f"the process that {self._purpose} could not be started ({error.strerror})"
            raise RequestError(why) from None

    def _exchange(self, process: subprocess.Popen[bytes], line: bytes) -> bytes:
        """The answer to ``line``; without its newline if the child died or did not answer in time."""
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(line)
            process.stdin.flush()
        except OSError:
            return b""
        with selectors.DefaultSelector() as selector:  # select() itself fails where a thousand files are open
            selector.register(process.stdout, selectors.EVENT_READ)
            return process.stdout.readline() if selector.select(self._wall_seconds) else b""

    def _stop(self) -> int | None:
        """End the child and return its exit status: the negative signal number if it died before this."""
        process, self._process = self._process, None
        if process is None:
            return None
        process.stdin.close() if process.stdin else None
        try:
            return process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
        finally:
            process.stdout.close() if process.stdout else None
