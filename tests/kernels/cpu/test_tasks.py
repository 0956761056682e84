"""The team of threads: every member runs every task, nobody passes a barrier early, items are given out once."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch

from octavo.kernels.cpu import build, tasks
from octavo.kernels.cpu.tasks import Step, Tasks

pytestmark = pytest.mark.skipif(build.load_library() is None, reason="no C compiler")

SIZES = (1, 2, 3, 8)

SOURCE = """
#include "team.h"

typedef struct { int64_t items, *order, *counts; int32_t *broken; } Call;

/* Each item is counted by whoever takes it; then, behind a barrier, all must have been counted by all members. */
void take_all(const Call *c, const Member *me) {
  for (int64_t i; (i = team_take(me, 3)) < c->items;)
    for (int64_t j = i; j < i + 3 && j < c->items; j++) c->counts[j]++;
  team_wait(me);
  for (int64_t j = 0; j < c->items; j++)
    if (c->counts[j] != *c->order + 1) *c->broken = 1;
  team_wait(me);
  if (me->index == 0) ++*c->order;
}

/* The share of the members is everything, once. */
void take_part(const Call *c, const Member *me) {
  int64_t first, last;
  team_part(me, c->items, &first, &last);
  for (int64_t j = first; j < last; j++) c->counts[j]++;
}
"""


class Call(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_int64 if name == "items" else ctypes.c_void_p)
        for name in ("items", "order", "counts", "broken")
    )


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("team")
    (folder / "tasks.c").write_text(SOURCE)
    sources = [folder / "tasks.c", build.SOURCES / "team.c"]
    command = ["cc", *build.FLAGS, f"-I{build.SOURCES}", "-shared", "-o", folder / "team.so", *sources, "-pthread"]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(folder / "team.so"))


class Run:
    """Memory that the tasks write to."""

    def __init__(self, items: int) -> None:
        self.order, self.counts, self.broken = ctypes.c_int64(), (ctypes.c_int64 * items)(), ctypes.c_int32()
        self.call = Call(items, *(ctypes.addressof(x) for x in (self.order, self.counts, self.broken)))


def tasks_of(library: ctypes.CDLL, size: int, monkeypatch) -> Tasks:
    monkeypatch.setattr(torch, "get_num_threads", lambda: size)
    return Tasks(library)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("items", [1, 2, 7, 100])
def test_a_list_of_tasks(library, size, items, monkeypatch):
    team, run = tasks_of(library, size, monkeypatch), Run(items)
    step = Step(team.address("take_all"), ctypes.addressof(run.call))
    team.run_all((Step * 200)(*[step] * 200))
    assert list(run.counts) == [200] * items
    assert (run.order.value, run.broken.value) == (200, 0)


@pytest.mark.parametrize("size", SIZES)
def test_shares(library, size, monkeypatch):
    team = tasks_of(library, size, monkeypatch)
    for items in range(1, 20):
        run = Run(items)
        team.run(team.address("take_part"), run.call)
        assert list(run.counts) == [1] * items


def test_members_that_slept_wake_up(library, monkeypatch):
    team, run = tasks_of(library, 2, monkeypatch), Run(5)
    for _ in range(20):
        team.run(team.address("take_all"), run.call)
        time.sleep(0.004)  # longer than a member waits awake
    assert (list(run.counts), run.broken.value) == ([20] * 5, 0)


def test_an_empty_list(library, monkeypatch):
    tasks_of(library, 3, monkeypatch).run_all((Step * 0)())


def test_two_callers_take_turns(library, monkeypatch):
    team, runs = tasks_of(library, 2, monkeypatch), [Run(50), Run(30)]

    def work(run: Run) -> None:
        for _ in range(300):
            team.run(team.address("take_all"), run.call)

    threads = [threading.Thread(target=work, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [list(run.counts) for run in runs] == [[300] * 50, [300] * 30]
    assert not any(run.broken.value for run in runs)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_has_a_team_of_its_own(library, monkeypatch):
    team, run = tasks_of(library, 2, monkeypatch), Run(5)
    team.run(team.address("take_all"), run.call)
    child = os.fork()
    if child == 0:
        team.run(team.address("take_all"), run.call)
        os._exit(0 if list(run.counts) == [2] * 5 else 1)
    deadline = time.monotonic() + 20
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(child, 9)
    assert ended == (child, 0), "the child waits for threads that it does not have"


def test_the_listener_hears_what_is_run(library, monkeypatch):
    team, run, heard = tasks_of(library, 1, monkeypatch), Run(2), []
    team.listener = lambda *note: heard.append(note)
    task = team.address("take_part")
    team.run(task, run.call, None)
    assert heard == [(task, run.call, (None,))]


def test_teams_are_shared(library):
    assert tasks._team(library, 2) == tasks._team(library, 2) != tasks._team(library, 3)


def test_a_header_is_part_of_the_fingerprint():
    """A library must not be reused when only the layout of a call has changed."""
    assert {path.suffix for path in Path(build.SOURCES).iterdir()} >= {".c", ".h"}
