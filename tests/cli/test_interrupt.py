"""Ctrl-C between two steps."""

from __future__ import annotations

import signal
import threading

import pytest

from octavo.cli.interrupt import interrupts_between_steps


def test_the_first_waits_for_the_check_and_comes_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interrupts_between_steps() as check:
        check()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            check()
        check()
    assert signal.getsignal(signal.SIGINT) is before


def test_the_second_acts_at_once() -> None:
    with interrupts_between_steps():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_where_ctrl_c_is_ignored_it_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_between_steps() as check:
            signal.raise_signal(signal.SIGINT)
            check()
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_may_use_it() -> None:
    seen: list[str] = []

    def work() -> None:
        with interrupts_between_steps() as check:
            check()
            seen.append("checked")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == ["checked"]
