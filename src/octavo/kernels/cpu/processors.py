"""Which processors this process may use, and how many threads are right for that.

One thread for each physical core: two that share a core share its multipliers and its caches, so that the second one
adds nothing to a product but waiting. A control group's quota counts, too: threads that wait for each other after
every operation lose more when one of them is stopped than a further thread could bring.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from octavo.errors import UsageError

OWN, OPENMP = "OCTAVO_NUM_THREADS", "OMP_NUM_THREADS"


@dataclass(frozen=True, slots=True)
class Processors:
    """What a process may use.

    Attributes:
        cpus: numbers of the logical processors, one of each physical core first: n threads are pinned to the first n.
        num_cores: physical cores that they are of.
        quota: processors' worth of time that the control group grants, or None for as much as there is.
    """

    cpus: tuple[int, ...]
    num_cores: int
    quota: float | None = None

    @property
    def num_threads(self) -> int:
        """How many threads compute fastest: as many as there are cores, or whole processors in the quota."""
        granted = self.num_cores if self.quota is None else int(self.quota)
        return max(1, min(self.num_cores, granted))

    def describe(self) -> str:
        """A few words for people."""
        parts = [_count(len(self.cpus), "processor"), _count(self.num_cores, "core")]
        return ", ".join(parts) + ("" if self.quota is None else f", and a quota of {self.quota:g}")


def usable(root: Path = Path("/")) -> Processors:
    """What this process may use, by its affinity, the machine's topology and its control groups.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    cpus = _affinity()
    return in_order(cpus, {cpu: _siblings(root, cpu) for cpu in cpus}, cpu_quota(root))


def in_order(cpus: Iterable[int], siblings: Mapping[int, frozenset[int]], quota: float | None) -> Processors:
    """Processors of different cores before those that share one.

    Args:
        cpus: numbers of the logical processors.
        siblings: those that are of the same core, itself included.
        quota: of the control group.
    """
    ranks: dict[int, int] = {}
    seen: dict[frozenset[int], int] = {}
    for cpu in sorted(cpus):
        ranks[cpu] = seen[siblings[cpu]] = seen.get(siblings[cpu], -1) + 1
    return Processors(tuple(sorted(ranks, key=lambda cpu: (ranks[cpu], cpu))), len(seen), quota)


def num_threads(
    asked: int | None = None, *, processors: Processors | None = None, environment: Mapping[str, str] = os.environ
) -> int:
    """How many threads to compute with: ``asked``, or ``$OCTAVO_NUM_THREADS``, or ``$OMP_NUM_THREADS`` as far as there
    are processors, or what suits them.

    Raises:
        UsageError: fewer than one, or more than there are processors.
    """
    processors = processors or usable()
    own = environment.get(OWN)
    if asked is not None:
        return _checked("num_threads", asked, processors)
    if own is not None:
        return _checked(OWN, own, processors)
    everyones = environment.get(OPENMP, "").partition(",")[0]  # a list: one number for each level of nesting
    if everyones.strip().isdecimal() and int(everyones) > 0:
        return min(int(everyones), len(processors.cpus))
    return processors.num_threads


def _checked(name: str, value: int | str, processors: Processors) -> int:
    most = len(processors.cpus)
    with suppress(ValueError):
        if 1 <= int(value) <= most:
            return int(value)
    raise UsageError(f"{name}={value}: this process may use {processors.describe()}; accepted: 1 to {most}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _affinity() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _siblings(root: Path, cpu: int) -> frozenset[int]:
    """The processors of a core, from a list like ``0,64`` or ``0-1``; the processor alone where nothing is said."""
    try:
        text = (root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
        ranges = [part.partition("-") for part in text.strip().split(",")]
        return frozenset(i for first, _, last in ranges for i in range(int(first), int(last or first) + 1))
    except (OSError, ValueError):
        return frozenset((cpu,))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Processors' worth of time that the control groups of this process grant; None: no limit."""
    return min(_quotas(root), default=None)


def _quotas(root: Path) -> Iterator[float]:
    """Of each group that this process is in, version 1 or 2, and of those around it, which bind as well."""
    for line in _lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts = [controllers, "cpu", "cpu,cpuacct"] if controllers else ["", "unified"]
        for folder in {folder for mount in mounts for folder in _inwards(root / "sys/fs/cgroup" / mount, path)}:
            quota = _quota_of_v1(folder) if controllers else _quota_of_v2(folder)
            if quota is not None:
                yield quota


def _inwards(mount: Path, path: str) -> Iterator[Path]:
    """The groups from the mount inwards. In a container the path may be the host's: then the mount is the group."""
    yield mount
    for part in Path(path.lstrip("/")).parts:
        mount = mount / part
        yield mount


def _quota_of_v2(folder: Path) -> float | None:
    """Of a file like ``150000 100000`` or ``max 100000``: microseconds of each period."""
    return _share(" ".join(_lines(folder / "cpu.max")).split())


def _quota_of_v1(folder: Path) -> float | None:
    """The same in two files; -1 is no limit."""
    return _share([*_lines(folder / "cpu.cfs_quota_us"), *_lines(folder / "cpu.cfs_period_us")])


def _share(words: list[str]) -> float | None:
    try:
        quota, period = map(int, words)
    except ValueError:
        return None
    return quota / period if quota > 0 and period > 0 else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
