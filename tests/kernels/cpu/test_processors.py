"""Which processors may be used, read from made-up machines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from octavo.errors import UsageError
from octavo.kernels.cpu import processors
from octavo.kernels.cpu.processors import Processors, cpu_quota, in_order, num_threads, usable


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def topology(siblings: dict[int, str]) -> dict[str, str]:
    return {f"sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list": text for i, text in siblings.items()}


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ({0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, (0, 1, 2, 3)),  # how Intel and most servers number them
        ({0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}, (0, 2, 1, 3)),  # how virtual machines do
    ],
)
def test_one_processor_of_each_core_comes_first(tmp_path, monkeypatch, lists, expected):
    monkeypatch.setattr(processors, "_affinity", lambda: [0, 1, 2, 3])
    found = usable(machine(tmp_path, topology(lists)))
    assert found == Processors(expected, 2, None)
    assert found.num_threads == 2


def test_siblings_outside_the_affinity_do_not_count(tmp_path, monkeypatch):
    monkeypatch.setattr(processors, "_affinity", lambda: [1, 2, 3])
    found = usable(machine(tmp_path, topology({1: "0-1", 2: "2-3", 3: "2-3"})))
    assert found == Processors((1, 2, 3), 2, None)


def test_without_a_topology_each_processor_is_a_core(tmp_path, monkeypatch):
    monkeypatch.setattr(processors, "_affinity", lambda: [0, 5])
    assert usable(tmp_path) == Processors((0, 5), 2, None)


def test_a_topology_that_is_no_list_is_ignored(tmp_path, monkeypatch):
    monkeypatch.setattr(processors, "_affinity", lambda: [0, 1])
    assert usable(machine(tmp_path, topology({0: "?", 1: ""}))).num_cores == 2


def test_this_machine_has_processors():
    found = usable()
    assert set(found.cpus) == set(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else found.cpus)
    assert 1 <= found.num_threads <= found.num_cores <= len(found.cpus)


V2 = "0::/app/worker"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": V2}, None),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/app/worker/cpu.max": "150000 100000"}, 1.5),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/app/worker/cpu.max": "max 100000"}, None),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/app/worker/cpu.max": "nonsense"}, None),
        # the group around it binds as well
        (
            {
                "proc/self/cgroup": V2,
                "sys/fs/cgroup/app/worker/cpu.max": "400000 100000",
                "sys/fs/cgroup/app/cpu.max": "200000 100000",
            },
            2.0,
        ),
        # in a container the path is the host's, and the mount is the group
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5),
        # version 1, under both names of the mount
        (
            {
                "proc/self/cgroup": "8:pids:/x\n4:cpu,cpuacct:/app",
                "sys/fs/cgroup/cpu,cpuacct/app/cpu.cfs_quota_us": "300000",
                "sys/fs/cgroup/cpu,cpuacct/app/cpu.cfs_period_us": "100000",
            },
            3.0,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/app",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "50000",
            },
            2.0,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            None,
        ),
        # a group of another controller says nothing
        ({"proc/self/cgroup": "3:cpuset:/a", "sys/fs/cgroup/cpuset/a/cpu.max": "100000 100000"}, None),
        # a period of nothing
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/cpu.max": "100000 0"}, None),
    ],
)
def test_the_quota_is_that_of_the_control_groups(tmp_path, files, quota):
    assert cpu_quota(machine(tmp_path, files)) == quota


@pytest.mark.parametrize(
    ("cores", "quota", "threads"), [(8, None, 8), (8, 3.9, 3), (8, 0.5, 1), (2, 64.0, 2), (1, None, 1)]
)
def test_threads_are_no_more_than_cores_and_whole_processors_of_the_quota(cores, quota, threads):
    found = Processors(tuple(range(2 * cores)), cores, quota)
    assert num_threads(processors=found, environment={}) == threads


FOUR = in_order(range(4), {i: frozenset((i & 2, i | 1)) for i in range(4)}, None)


@pytest.mark.parametrize(
    ("asked", "environment", "threads"),
    [
        (None, {}, 2),
        (4, {"OCTAVO_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}, 4),
        (None, {"OCTAVO_NUM_THREADS": "3", "OMP_NUM_THREADS": "1"}, 3),
        (None, {"OMP_NUM_THREADS": "1"}, 1),
        (None, {"OMP_NUM_THREADS": "3,2"}, 3),
        (None, {"OMP_NUM_THREADS": "64"}, 4),  # meant for a larger machine, and not only for us
        (None, {"OMP_NUM_THREADS": "0"}, 2),
        (None, {"OMP_NUM_THREADS": "many"}, 2),
    ],
)
def test_who_decides_the_number_of_threads(asked, environment, threads):
    assert num_threads(asked, processors=FOUR, environment=environment) == threads


@pytest.mark.parametrize(
    ("asked", "environment", "named"),
    [
        (0, {}, "num_threads=0"),
        (-1, {}, "num_threads=-1"),
        (5, {}, "num_threads=5"),
        (None, {"OCTAVO_NUM_THREADS": "5"}, "OCTAVO_NUM_THREADS=5"),
        (None, {"OCTAVO_NUM_THREADS": "two"}, "OCTAVO_NUM_THREADS=two"),
        (None, {"OCTAVO_NUM_THREADS": ""}, "OCTAVO_NUM_THREADS="),
    ],
)
def test_a_number_that_cannot_be_is_refused_with_what_there_is(asked, environment, named):
    with pytest.raises(UsageError, match=r"this process may use 4 processors, 2 cores; accepted: 1 to 4") as refusal:
        num_threads(asked, processors=FOUR, environment=environment)
    assert str(refusal.value).startswith(named)
