"""Runs chat templates in a child process, so that a hostile one costs at most two seconds and an error.

Jinja's sandbox keeps a template from reaching Python, but not from looping for hours or filling the memory,
and no in-process guard sees all the ways to do that (``{{ [x, x] }}`` nested 64 times prints 2**64 items in
one C call). The operating system does: the child has a CPU-time and a memory limit. It starts with the first
chat, serves all that follow, and is replaced when it dies. A message and its answer are one line of JSON
each.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from octavo.errors import RequestError
from octavo.text.template_worker import CPU_SECONDS

WALL_SECONDS = 60.0
"""A backstop for a machine so busy that the CPU-time limit takes this long to be reached."""

MAX_TEMPLATE_CHARACTERS = 1 << 20


def render_template(template: str, variables: Mapping[str, Any]) -> str:
    """What the Jinja ``template`` prints, given ``variables`` (plain JSON values).

    Raises:
        RequestError: the template is malformed, fails, refuses, or goes beyond a limit.
    """
    if not isinstance(template, str) or len(template) > MAX_TEMPLATE_CHARACTERS:
        raise RequestError(f"a chat template must be a string of at most {MAX_TEMPLATE_CHARACTERS} characters")
    try:
        request = json.dumps({"template": template, "variables": variables}).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"the chat holds a value that is not plain JSON ({error})"[:300]) from None
    answer = _shared_process(os.getpid()).ask(request)
    if "error" in answer:
        raise RequestError(answer["error"])
    return answer["text"]


class TemplateProcess:
    """The child process, started when first asked. Safe to share between threads."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = Lock()

    def ask(self, request: bytes) -> dict[str, str]:
        """Send one line, return the answer: ``{"text": ...}`` or ``{"error": ...}``."""
        with self._lock:
            process = self._running()
            line = _exchange(process, request + b"\n")
            if line.endswith(b"\n"):
                return json.loads(line)
            return {"error": _cause_of_death(self._stop())}

    def close(self) -> None:
        """End the child; the next ``ask`` starts another."""
        with self._lock:
            self._stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self._stop()
        if self._process is None:
            self._process = _start()
        return self._process

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


def _start() -> subprocess.Popen[bytes]:
    """Run the worker as a plain script, with the modules that this process can import, deaf to Ctrl-C."""
    script = Path(__file__).with_name("template_worker.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    try:
        return subprocess.Popen(
            [sys.executable, "-P", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise RequestError(f"the process that runs chat templates could not be started ({error.strerror})") from None


def _exchange(process: subprocess.Popen[bytes], line: bytes) -> bytes:
    """The answer to ``line``; without its newline if the child died or did not answer in time."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(line)
        process.stdin.flush()
    except OSError:
        return b""
    ready, _, _ = select.select([process.stdout], [], [], WALL_SECONDS)
    return process.stdout.readline() if ready else b""


def _cause_of_death(status: int | None) -> str:
    if status == -signal.SIGPROF:
        return f"the chat template ran for more than {CPU_SECONDS:g} seconds and was stopped"
    return f"the chat template made its process fail (exit status {status}); it may need too much memory"


@lru_cache(maxsize=1)
def _shared_process(owner: int) -> TemplateProcess:
    """This process's child; ``owner``, a process id, keeps a fork from sharing its parent's."""
    process = TemplateProcess()
    atexit.register(lambda: process.close() if os.getpid() == owner else None)
    return process
