"""The child process under limits: it answers, is replaced when it dies, and leaves nothing behind."""

from __future__ import annotations

import os
import resource
import selectors
import signal
import sys
from pathlib import Path

import pytest

from octavo.errors import RequestError
from octavo.text import template_worker
from octavo.text.limited_process import DiedError, LimitedProcess, shared_process

WORKER = Path(template_worker.__file__)


def test_a_child_that_was_killed_is_replaced() -> None:
    process = LimitedProcess(WORKER, "runs chat templates", 60.0)
    request = b'{"template": "{{ x }}", "variables": {"x": "y"}}'
    assert process.ask(request) == {"text": "y"}
    assert process._process is not None
    os.kill(process._process.pid, signal.SIGKILL)
    process._process.wait()
    assert process.ask(request) == {"text": "y"}
    process.close()
    assert process.ask(request) == {"text": "y"}
    process.close()


def test_closing_ends_the_child() -> None:
    process = LimitedProcess(WORKER, "runs chat templates", 60.0)
    process.ask(b'{"template": "", "variables": {}}')
    child = process._process
    process.close()
    assert child is not None
    assert child.returncode == 0


def test_a_question_that_kills_the_child_is_an_error_and_the_next_one_is_answered(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import os\nfor _ in range(2):\n    print(int(input()) or os._exit(7), flush=True)\n")
    process = LimitedProcess(script, "counts", 60.0)
    assert process.ask(b"3") == 3
    with pytest.raises(DiedError) as caught:
        process.ask(b"0")
    assert caught.value.status == 7
    assert process.ask(b"4") == 4
    process.close()


def test_a_child_that_does_not_answer_in_time_is_ended(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import time\ntime.sleep(60)\n")
    with pytest.raises(DiedError):
        LimitedProcess(script, "sleeps", 0.2).ask(b"")


def test_a_child_that_cannot_be_started_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(RequestError, match="the process that runs chat templates could not be started"):
        LimitedProcess(WORKER, "runs chat templates", 60.0).ask(b"{}")


def test_a_process_has_one_child_for_a_script() -> None:
    assert shared_process(WORKER, "x", 60.0) is shared_process(WORKER, "x", 60.0)


def test_a_child_can_be_asked_where_a_thousand_files_are_open() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip("so many files may not be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    process = LimitedProcess(WORKER, "runs chat templates", 60.0)
    try:
        assert process.ask(b'{"template": "{{ x }}", "variables": {"x": "y"}}') == {"text": "y"}
    finally:
        process.close()
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_who_is_interrupted_leaves_his_answer_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    process = LimitedProcess(WORKER, "runs chat templates", 60.0)
    with monkeypatch.context() as patch:
        patch.setattr(selectors.DefaultSelector, "select", lambda *_: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            process.ask(b'{"template": "first", "variables": {}}')
    assert process.ask(b'{"template": "second", "variables": {}}') == {"text": "second"}
    process.close()
