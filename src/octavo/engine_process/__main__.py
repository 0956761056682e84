"""``python -m octavo.engine_process FD FOLDER``: the process that `octavo.client.process` starts.

``FD`` is its end of the lifeline, ``FOLDER`` where its sockets are to be; what to run comes on standard input.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import traceback
from functools import partial

import msgspec

from octavo.client.lifeline import ChildEnd, LastWords
from octavo.client.wire import Start, decode_start
from octavo.errors import OctavoError
from octavo.large_imports import large_imports


def main() -> None:
    # The parent ends this process: a supervisor that signals all processes at once must not be quicker than its drain.
    # Handlers, because an ignored signal would stay ignored in the compilers that are started from here.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    fd, folder = sys.argv[1:]
    remove_folder = partial(shutil.rmtree, folder, ignore_errors=True)
    lifeline = ChildEnd(int(fd), remove_folder)
    try:
        start = decode_start(sys.stdin.buffer.read())
    except msgspec.DecodeError:  # the parent has died before it could say what to run
        remove_folder()
        os._exit(1)
    code = _run(start, lifeline, folder)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a device that is lost would keep the interpreter from ending


def _run(start: Start, lifeline: ChildEnd, folder: str) -> int:
    try:
        with large_imports():
            from octavo.engine_process.run import run

        run(start, folder)
    except OctavoError as error:
        lifeline.say(LastWords(str(error), type(error).__name__))
        return 1
    except BaseException as error:
        traceback.print_exc()
        lifeline.say(LastWords(" ".join("".join(traceback.format_exception_only(error)).split())))
        return 1
    return 0


if __name__ == "__main__":
    main()
