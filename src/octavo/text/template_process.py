"""Runs chat templates in a child process, so that a hostile one costs at most two seconds and an error.

Jinja's sandbox keeps a template from reaching Python, but not from looping for hours or filling the memory,
and no in-process guard sees all the ways to do that (``{{ [x, x] }}`` nested 64 times prints 2**64 items in
one C call). The child has a CPU-time and a memory limit (`limited_process`). A message and its answer are one
line of JSON each.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.errors import RequestError
from octavo.text.limited_process import DiedError, LimitedProcess, shared_process

WALL_SECONDS = 60.0
"""A backstop for a machine so busy that the CPU-time limit takes this long to be reached."""

MAX_TEMPLATE_CHARACTERS = 1 << 20
_WORKER = Path(__file__).with_name("template_worker.py")


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
    try:
        answer = _process().ask(request)
    except DiedError as error:
        raise RequestError(_cause_of_death(error.status)) from None
    if "error" in answer:
        raise RequestError(answer["error"])
    return answer["text"]


def start_template_process() -> None:
    """Start the child now, so that it gets ready while something else is waited for. `render_template` does it, too.

    Raises:
        RequestError: it cannot be started.
    """
    _process().start()


def _process() -> LimitedProcess:
    return shared_process(_WORKER, "runs chat templates", WALL_SECONDS)


def _cause_of_death(status: int | None) -> str:
    from octavo.text.template_worker import CPU_SECONDS  # and with it Jinja, which this process does not need

    if status == -signal.SIGPROF:
        return f"the chat template ran for more than {CPU_SECONDS:g} seconds and was stopped"
    return f"the chat template made its process fail (exit status {status}); it may need too much memory"
