"""The C kernels as tasks of one team of threads: see ``native/team.h``."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from ctypes import c_int, c_int64, c_void_p
from functools import cache

import torch
from torch import Tensor

from octavo.kernels.cpu.processors import usable

Listener = Callable[[int, ctypes.Structure, tuple[Tensor | None, ...]], None]
"""Hears of each task: its address, its call, and the tensors that the call points into."""


class Step(ctypes.Structure):
    """A task and its call; see ``native/team.h``."""

    _fields_ = (("task", c_void_p), ("call", c_void_p))


class Tasks:
    """Runs tasks of the compiled library.

    Attributes:
        threads: how many run each task: as many as the process had when this was made, for memory is made for them.
        names: of the tasks, by their addresses.
        listener: hears of each task that is run, if there is one.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._run = function(library, "octavo_run", (c_void_p, c_void_p, c_int64))
        self._run_one = function(library, "octavo_run_one", (c_void_p, c_void_p, c_void_p))
        self.threads = torch.get_num_threads()
        self.names: dict[int, str] = {}
        self.listener: Listener | None = None

    def address(self, name: str) -> int:
        """The task's, to give to ``run``."""
        address = ctypes.cast(self._library[name], c_void_p).value or 0
        self.names[address] = name
        return address

    def run(self, task: int, call: ctypes.Structure, *tensors: Tensor | None) -> None:
        """Run one task. ``tensors``: all that ``call`` points into and that might otherwise be freed."""
        self._run_one(_team(self._library, self.threads), task, ctypes.addressof(call))
        if self.listener is not None:
            self.listener(task, call, tensors)

    def run_all(self, steps: ctypes.Array[Step]) -> None:
        """Run tasks one after the other."""
        self._run(_team(self._library, self.threads), ctypes.addressof(steps), len(steps))


@cache
def _team(library: ctypes.CDLL, size: int) -> int:
    """The process's threads: all that compute on this CPU share them, since more would only wait for each other."""
    cpus = usable().cpus[:size]
    numbers = (ctypes.c_int32 * len(cpus))(*cpus)
    new = function(library, "octavo_team_new", (c_int, c_void_p, c_int), c_void_p)
    return int(new(size, ctypes.addressof(numbers), len(cpus)))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_team.cache_clear)  # a child has none of its parent's threads


def function(
    library: ctypes.CDLL, name: str, arguments: tuple[type, ...], result: type | None = None
) -> ctypes._FuncPointer:
    """The library's function of that name."""
    found = library[name]
    found.argtypes, found.restype = arguments, result
    return found
