"""Members of a team that share a processor come apart when another one idles, and stay where they are otherwise."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo.kernels.cpu import build

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who runs where")

SOURCE = """
#include "places.c"
int test_runnable(const char *text) { return parse_runnable(text); }
void test_seen(Places *p, int member, int cpu) { atomic_store(&p->of[member].cpu, cpu); }
int test_cpu_of(Places *p, int member) { return cpu_of(p, member); }
int test_free_cpu(Places *p, int member, int here) { return free_cpu(p, member, here); }
void test_loadavg(Places *p, int fd) { close(p->loadavg); p->loadavg = fd; }
"""
IDLE, BUSY = b"0.10 0.20 0.30 1/345 12345\n", b"9.10 0.20 0.30 9999/99999 12345\n"

LATER, LONG = 10**12, 10**6


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("places")
    (folder / "test.c").write_text(SOURCE)
    command = ["cc", *build.FLAGS, f"-I{build.SOURCES}", "-shared", "-o", folder / "places.so", folder / "test.c"]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(folder / "places.so"))
    library.places_new.restype = ctypes.c_void_p
    return library


class Places:
    """Two members at `cpus`, both seen on the first of them."""

    def __init__(self, library: ctypes.CDLL, cpus: list[int], size: int = 2) -> None:
        numbers = (ctypes.c_int32 * len(cpus))(*cpus)
        self._library, self._size = library, size
        self._places = ctypes.c_void_p(library.places_new(size, numbers, len(cpus)))
        self.see(*[cpus[0]] * size)

    def see(self, *cpus: int) -> None:
        for member, cpu in enumerate(cpus):
            self._library.test_seen(self._places, member, cpu)

    def free_cpu(self, member: int, here: int) -> int:
        return self._library.test_free_cpu(self._places, member, here)

    def come_apart(self, loadavg: Path, *times: int) -> list[int]:
        """Where the members were last seen after the first one has waited, and looked at ``times``, in nanoseconds."""
        self._library.test_loadavg(self._places, os.open(loadavg, os.O_RDONLY))
        for time in times or (LATER, LATER + LONG):
            self._library.places_come_apart(self._places, 0, ctypes.c_int64(time))
        return [self._library.test_cpu_of(self._places, i) for i in range(self._size)]

    def free(self) -> None:
        self._library.places_free(self._places)


@pytest.fixture
def home() -> Iterator[list[int]]:
    """Two processors; this thread is on the first, but may run on both."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("one processor")
    os.sched_setaffinity(0, cpus[:1])
    os.sched_setaffinity(0, cpus)
    yield cpus[:2]
    os.sched_setaffinity(0, cpus)


def says(tmp_path: Path, text: bytes) -> Path:
    path = tmp_path / "loadavg"
    path.write_bytes(text)
    return path


@pytest.mark.parametrize(
    ("text", "count"),
    [(IDLE, 1), (BUSY, 9999), (b"0.0 0.0 0.0 0/1 1", 0), (b"", -1), (b"0.1 0.2", -1), (b"0.1 0.2 0.3 x/4 5", -1)],
)
def test_threads_that_can_run(library, text, count):
    assert library.test_runnable(text) == count


@pytest.mark.parametrize(
    ("seen", "member", "here", "free"),
    [
        ((4, 4, 6), 0, 4, 5),
        ((4, 4, 5), 0, 4, 6),
        ((4, 4, 5), 1, 4, 6),
        ((6, 6, -1), 0, 6, 4),
        ((4, 5, 6), 0, 4, -1),
        ((9, 9, 9), 0, 9, 4),
    ],
)
def test_a_processor_without_a_member(library, seen, member, here, free):
    places = Places(library, [4, 5, 6], size=3)
    places.see(*seen)
    assert places.free_cpu(member, here) == free
    places.free()


def test_two_on_one_come_apart_and_may_run_where_they_might_before(library, home, tmp_path):
    places, before = Places(library, home), os.sched_getaffinity(0)
    moved, idle = [], says(tmp_path, IDLE)
    for _ in range(20):  # the system may move the thread, too, in a moment when nobody looks
        os.sched_setaffinity(0, home[:1])
        os.sched_setaffinity(0, before)
        places.see(home[0], home[0])
        moved.append(places.come_apart(idle))
    assert [home[1], home[0]] in moved
    assert os.sched_getaffinity(0) == before
    places.free()


def test_they_come_apart_only_where_a_processor_stays_idle(library, home, tmp_path):
    places = Places(library, home)
    at_once = [LATER, LATER + LONG // 10]
    assert places.come_apart(says(tmp_path, IDLE), *at_once) == [home[0]] * 2
    assert places.come_apart(says(tmp_path, BUSY), LATER + LONG) == [home[0]] * 2
    assert places.come_apart(says(tmp_path, IDLE), LATER + 2 * LONG) == [home[0]] * 2
    places.free()


@pytest.mark.parametrize("text", [BUSY, b"", b"nonsense"])
def test_they_stay_where_no_processor_is_known_to_idle(library, home, tmp_path, text):
    places = Places(library, home)
    assert places.come_apart(says(tmp_path, text)) == [home[0]] * 2
    places.free()


def test_a_member_does_not_leave_the_processors_it_may_run_on(library, home, tmp_path):
    os.sched_setaffinity(0, home[:1])
    places = Places(library, home)
    assert places.come_apart(says(tmp_path, IDLE)) == [home[0]] * 2
    assert os.sched_getaffinity(0) == {home[0]}
    places.free()


def test_who_is_alone_stays(library, home, tmp_path):
    places = Places(library, home)
    places.see(home[0], home[1])
    assert places.come_apart(says(tmp_path, IDLE)) == [home[0], home[1]]
    places.free()
