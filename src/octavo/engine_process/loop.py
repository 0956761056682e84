"""The engine's loop: take in what has come, step, send what is new. It sleeps when there is nothing to do."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

from octavo.client.verbs import BusyError
from octavo.client.wire import Abort, Answer, Call, News, Refused, Stop
from octavo.engine import Engine
from octavo.engine_process.adapter_reader import AdapterRead
from octavo.engine_process.deadlines import Deadlines
from octavo.engine_process.desk import Desk
from octavo.engine_process.door import Door
from octavo.engine_process.inbox import Arrived, Inbox, Item
from octavo.engine_process.meter import Meter
from octavo.engine_process.pace import Pace
from octavo.engine_process.verbs import LATER, Verbs
from octavo.errors import OctavoError, RequestError

MAX_FAILURES = 3
"""Steps that may fail one after the other before the engine is given up."""


class EngineFailedError(OctavoError):
    """The engine cannot go on."""


class EngineLoop:
    """Runs until a `Stop` comes.

    Args:
        send: takes one message with all news of a step. It may block while whoever reads them lags far behind: to
            compute more for one who does not read is of no use.
    """

    def __init__(
        self, engine: Engine, inbox: Inbox, send: Callable[[News], None], door: Door, meter: Meter, pace: Pace
    ) -> None:
        self._engine = engine
        self._inbox = inbox
        self._send = send
        self._door = door
        self._meter = meter
        self._pace = pace
        self._desk = Desk(meter)
        self._verbs = Verbs(engine, inbox.put)
        self._deadlines = Deadlines(lives=lambda key: self._desk.id_of(key) is not None)
        self._failures = 0
        self._stopped = False

    def run(self) -> None:
        """Raises ``EngineFailedError`` when steps fail again and again, or the device is lost."""
        try:
            while not self._stopped:
                self._turn()
        finally:
            self._verbs.stop()

    def _turn(self) -> None:
        idle = not self._engine.has_unfinished_requests()
        for item in self._inbox.take(wait=idle):
            self._handle(item)
        self._end_overdue()
        self._flush()  # a refusal need not wait for the step
        if self._engine.has_unfinished_requests():
            self._step()
        self._flush()

    # ---------------------------------------------------------------- what comes in

    def _handle(self, item: Item) -> None:
        match item:
            case Arrived():
                self._add(item)
            case Abort():
                self._abort(item.key)
            case Call():
                self._answer(item.key, item.verb, partial(self._verbs.call, item))
            case AdapterRead():
                self._answer(item.key, "add_lora", partial(self._verbs.keep_lora, item))
            case Refused():
                self._desk.news.refused.append(item)
            case Stop():
                self._stopped = True

    def _add(self, arrived: Arrived) -> None:
        message = arrived.message
        try:
            self._check_room(arrived)
            output = self._verbs.add(message, arrived.token_ids)
        except BusyError as error:
            self._desk.news.refused.append(Refused(message.key, str(error), error.retry_after))
        except RequestError as error:
            self._desk.news.refused.append(Refused(message.key, str(error)))
        except Exception as error:  # one request that nobody has thought of must not end all others
            traceback.print_exception(error, file=sys.stderr)
            why = f"the engine cannot take it: {last_line(error)}"
            self._desk.news.refused.append(Refused(message.key, why, kind="failure"))
        else:
            self._desk.follow(message.key, output, tell_prompt=arrived.was_text)
            if message.deadline is not None:
                self._deadlines.add(message.deadline, message.key)

    def _check_room(self, arrived: Arrived) -> None:
        scheduler = self._engine.scheduler
        stats = scheduler.stats()
        count = 1 if arrived.message.embed else arrived.message.params.n
        self._door.check(
            count,
            count * len(arrived.token_ids),
            waiting=stats.waiting,
            rows=scheduler.max_num_seqs - stats.running,
            waiting_tokens=scheduler.waiting.num_tokens,
            now=time.monotonic(),
        )

    def _abort(self, key: int, stop_reason: str | None = None) -> None:
        request_id = self._desk.id_of(key)
        output = self._engine.abort(request_id, stop_reason) if request_id is not None else None
        if output is not None:
            self._desk.tell([output])

    def _answer(self, key: int, verb: str, work: Callable[[], Any]) -> None:
        """Answer a call with what ``work`` returns, unless that comes later."""
        answer = _outcome(key, verb, work)
        if answer.value is not LATER:
            self._desk.news.answers.append(answer)

    def _end_overdue(self) -> None:
        for key in self._deadlines.overdue(time.monotonic()):
            self._abort(key, "deadline")

    # ---------------------------------------------------------------- steps

    def _step(self) -> None:
        try:
            outputs = self._engine.step()
        except Exception as error:
            self._failed(error)
        else:
            self._failures = 0
            for request_id in self._desk.tell(outputs):
                self._engine.abort(request_id)

    def _failed(self, error: Exception) -> None:
        """Its requests have ended with an error; the engine goes on if it can."""
        reason = last_line(error)
        traceback.print_exception(error, file=sys.stderr)
        self._desk.tell_failure(f"the model failed: {reason}")
        self._failures += 1
        if self._failures >= MAX_FAILURES or is_device_lost(error):
            self._flush()
            raise EngineFailedError(reason)

    def _flush(self) -> None:
        if self._pace.is_due(self._desk.num_grown):
            self._desk.tell_all()
            self._pace.told()
        if self._desk.has_news():
            news = self._desk.take()
            news.load = self._meter.snapshot()
            self._send(news)


def _outcome(key: int, verb: str, work: Callable[[], Any]) -> Answer:
    try:
        return Answer(key, work())
    except OctavoError as error:
        return Answer(key, error=str(error))
    except AssertionError as error:
        return Answer(key, error=f"the check failed: {error}", failed=True)
    except Exception as error:  # an adapter that does not fit into memory must not end the engine
        traceback.print_exception(error, file=sys.stderr)
        return Answer(key, error=f"{verb} failed: {last_line(error)}", failed=True)


def last_line(error: BaseException) -> str:
    """What a traceback of it ends with, in one line."""
    return " ".join("".join(traceback.format_exception_only(error)).split())


def is_device_lost(error: BaseException) -> bool:
    """Whether a GPU will do nothing more for this process: after a CUDA error, but not after it ran out of memory."""
    causes: list[Any] = [error, error.__cause__, error.__context__]
    return any("CUDA error" in str(cause) or "CUDA driver error" in str(cause) for cause in causes if cause)
