"""The engine's process as its parent sees it: started, watched, and never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from octavo.client.lifeline import LastWords, make_lifeline, read_last_words
from octavo.client.wire import Limits, Start, encode
from octavo.config import EngineConfig

_LONGEST_SOCKET_PATH = 100
"""Bytes: the system's limit for names of sockets is a little above."""

REAP_SECONDS = 0.4
"""A process that has closed its files is as good as dead, but one with much memory may take a while to be gone."""


class EngineProcess:
    """Starts the process at once; it then loads the model.

    Attributes:
        folder: where its sockets are.
        last_words: what it said of its end, once `died` has returned.

    Its standard output is our standard error: what libraries print there is no output of ours. It leads a session of
    its own, so that Ctrl-C does not reach it: its end is for the parent to decide, or comes with the parent's own.
    """

    def __init__(self, config: EngineConfig, limits: Limits) -> None:
        self.folder = _private_folder()
        self._lifeline, theirs = make_lifeline()
        self.last_words: LastWords | None = None
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "octavo.engine_process", str(theirs.fileno())],
                stdin=subprocess.PIPE,
                stdout=2,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
                start_new_session=True,
            )
        assert self._process.stdin is not None
        try:
            with self._process.stdin as stdin:
                stdin.write(encode(Start(config, limits, str(self.folder))))
        except BrokenPipeError:  # it has died already: `died` tells why
            pass

    @property
    def pid(self) -> int:
        return self._process.pid

    async def died(self) -> str:
        """Wait for its end, and say why it came. To be called once."""
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self._lifeline.fileno(), readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(self._lifeline.fileno())
        return await asyncio.to_thread(self._reason)

    def _reason(self) -> str:
        """The lifeline has something to read: last words, with the end of the file close behind, or that alone."""
        self._lifeline.settimeout(REAP_SECONDS)
        self.last_words = read_last_words(self._lifeline)
        try:
            return reason_of(self._process.wait(REAP_SECONDS), self.last_words)
        except subprocess.TimeoutExpired:
            return reason_of(None, self.last_words)

    def wait(self, seconds: float) -> None:
        """Give it so long to end by itself. Blocks."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def remove_folder(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def end(self) -> None:
        """See that the process is gone, and its folder with it. Safe to call twice."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._lifeline.close()
        self.remove_folder()


def reason_of(returncode: int | None, last_words: LastWords | None) -> str:
    """Why a process ended, for people: what it said, else what the system says. ``None``: it is still ending."""
    if last_words is not None:
        return last_words.message
    if returncode is None:
        return "it has closed its connection"
    if returncode == -signal.SIGKILL:
        return "it was killed by SIGKILL: by someone, or by the system because memory ran out"
    if returncode < 0:
        return f"it was killed by {signal.Signals(-returncode).name}"
    return f"it ended with exit code {returncode}"


def _private_folder() -> Path:
    """A new folder that only this user can enter, with a name short enough for the sockets in it."""
    parent = tempfile.gettempdir()
    if len(os.fsencode(parent)) > _LONGEST_SOCKET_PATH - 40:
        parent = "/tmp"
    return Path(tempfile.mkdtemp(prefix="octavo-", dir=parent))
