"""Decode steps recorded as lists of tasks.

A small model's decode step is some 200 kernels of a few microseconds, and the Python between two of them takes longer
than that. The first step of each size runs as any other, while its tasks are written down with their arguments; later
ones run the list in one call. It is what a CUDA graph is on a GPU, with the same two conditions: addresses do not
change, so that memory comes from a pool that the recordings own; and nothing but tasks computes. The second is not
taken on trust: torch reports each operation that it is asked for, and one that is more than a view ends the recording.
"""

from __future__ import annotations

import ctypes
import weakref
from collections import defaultdict
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from octavo.kernels.cpu.arena import Arena
from octavo.kernels.cpu.attention_plan import CpuPlan
from octavo.kernels.cpu.lora import CpuLora
from octavo.kernels.cpu.tasks import Step, Tasks
from octavo.kernels.forward_batch import AttentionPlan, ForwardBatch, own_plan
from octavo.kernels.lora import own_lora
from octavo.kernels.recording import Recording

_SMALLEST = 64


class Pool:
    """Memory for what recorded steps compute.

    A stretch is used again as soon as no tensor needs it, so that a step works in little memory, near the cores. All
    recordings use the same: they run one at a time, and nothing is left of one when the next begins.
    """

    def __init__(self) -> None:
        self._arena = Arena()
        self._chunks: list[Tensor] = []
        self._free: defaultdict[int, list[int]] = defaultdict(list)  # addresses by size

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory that holds anything."""
        size = max(_SMALLEST, 1 << (prod(shape) * dtype.itemsize - 1).bit_length())
        address = self._free[size].pop() if self._free[size] else self._new(size)
        memory = (ctypes.c_uint8 * size).from_address(address)
        weakref.finalize(memory, self._free[size].append, address).atexit = False
        used = torch.frombuffer(memory, dtype=torch.uint8)[: prod(shape) * dtype.itemsize]
        return used.view(dtype).view(shape)

    def _new(self, size: int) -> int:
        self._chunks.append(self._arena.take(size))
        return self._chunks[-1].data_ptr()

    def owns(self, tensor: Tensor) -> bool:
        """Whether the tensor's memory is from here, and so stays when the tensor goes."""
        at = tensor.data_ptr()
        return any(chunk.data_ptr() <= at < chunk.data_ptr() + len(chunk) for chunk in self._chunks)


class _Watch(TorchDispatchMode):
    """Gives out memory of the pool, and notes the first operation of torch that is no view."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self._pool = pool
        self.computed: str | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch would import its compiler, which takes a second, to keep it away from here."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("empty", "new_empty"):
            return self._empty(func, args, kwargs or {})
        result = func(*args, **(kwargs or {}))
        if not _is_view(func, result, args):
            self.computed = self.computed or name
        return result

    def _empty(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        """What torch would give, from the pool. Torch's own, which nobody touches, has shape and dtype."""
        like = func(*args, **kwargs)
        return self._pool.empty(tuple(like.shape), like.dtype)


def _is_view(func: Any, result: Any, args: Any) -> bool:
    """Whether ``func`` reads and writes nothing: it promises so, and its result is in its first argument's memory (that
    of ``to`` or ``reshape`` may be or not).
    """
    returns = func._schema.returns
    if not returns or any(r.alias_info is None or r.alias_info.is_write for r in returns):
        return False
    results = result if isinstance(result, list | tuple) else [result]
    memory = args[0].untyped_storage().data_ptr()
    return all(tensor.untyped_storage().data_ptr() == memory for tensor in results)


class TaskRecording:
    """A list of tasks that read the memory of one batch and leave one result."""

    def __init__(self, tasks: Tasks, batch: ForwardBatch, notes: list[Note], result: Tensor) -> None:
        """``notes``: what the tasks listener heard, in order. ``result`` is contiguous but for a stride of rows."""
        self._tasks, self._token_ids = tasks, batch.token_ids
        self._plan, self._lora = own_plan(_planned(batch), CpuPlan), batch.lora
        self._calls = [note.call for note in notes]
        self._held = [tensor for note in notes for tensor in note.held]
        self._steps = (Step * len(notes))(*(Step(note.task, ctypes.addressof(note.call)) for note in notes))
        self._result = _unowned(result)

    def replay(self, batch: ForwardBatch) -> Tensor:
        """See `octavo.kernels.recording.Recording`."""
        ids = self._token_ids
        ctypes.memmove(ids.data_ptr(), batch.token_ids.data_ptr(), ids.nbytes)
        self._plan.follow(own_plan(_planned(batch), CpuPlan))
        if self._lora is not None and batch.lora is not None:
            own_lora(self._lora, CpuLora).follow(own_lora(batch.lora, CpuLora))
        self._tasks.run_all(self._steps)
        return self._result


def _unowned(tensor: Tensor) -> Tensor:
    """The same numbers in the same place, without keeping the place from being given to others."""
    count = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    memory = (ctypes.c_uint8 * (count * tensor.itemsize)).from_address(tensor.data_ptr())
    return torch.frombuffer(memory, dtype=tensor.dtype).as_strided(tensor.shape, tensor.stride())


class Note(NamedTuple):
    """A task that was run: its address, its call, and what must not be freed while it may run again."""

    task: int
    call: ctypes.Structure
    held: list[Tensor]


def record(
    tasks: Tasks, pool: Pool, batch: ForwardBatch, compute: Callable[[], Tensor]
) -> tuple[Tensor, Recording | None]:
    """See ``Ops.record``."""
    notes: list[Note] = []

    def note(task: int, call: ctypes.Structure, tensors: tuple[Tensor | None, ...]) -> None:
        notes.append(Note(task, call, [t for t in tensors if t is not None and not pool.owns(t)]))

    tasks.listener = note
    try:
        with _Watch(pool) as watch:
            result = compute()
    finally:
        tasks.listener = None
    if watch.computed is not None or not pool.owns(result):
        return result, None
    return result, TaskRecording(tasks, batch, notes, result)


def _planned(batch: ForwardBatch) -> AttentionPlan:
    if batch.attention is None:
        raise TypeError("batch.attention is not set; plan_attention of the same ops makes it")
    return batch.attention
