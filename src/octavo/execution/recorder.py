"""Work recorded as CUDA graphs that share their memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Work = Callable[[], tuple[Tensor, ...]]


class Recorder:
    """Records graphs that run one after the other on one stream.

    What a graph computes lies in memory that the next one may use for something else. So the results of one are good
    until another one runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None  # of memory; known once there is a graph
        self._stream: torch.cuda.Stream | None = None

    def record(self, work: Work, *, rehearsed: bool = False) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        """The results' places, and a function that computes them again. ``work`` runs once before, to compile kernels
        and set up libraries, which cannot be recorded; unless that was ``rehearsed``.
        """
        if self._device.type != "cuda":
            return _repeat(work)
        self._stream = stream = self._stream or torch.cuda.Stream()  # each has library workspaces of its own
        if not rehearsed:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                work()
            torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=stream):
            results = work()
        self._pool = self._pool or graph.pool()
        return tuple(map(unowned, results)), graph.replay


class _Memory:
    """A tensor's memory in the form in which libraries show theirs to each other."""

    def __init__(self, tensor: Tensor) -> None:
        place = (tensor.data_ptr(), False)
        self.__cuda_array_interface__ = {"shape": (tensor.nbytes,), "typestr": "|u1", "data": place, "version": 3}


def unowned(tensor: Tensor) -> Tensor:
    """The same numbers in the same place, without keeping the place from being given to others."""
    if not tensor.is_contiguous() or not tensor.nbytes:
        return tensor
    return torch.as_tensor(_Memory(tensor), device=tensor.device).view(tensor.dtype).view(tensor.shape)


def _repeat(work: Work) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
    """What stands for a graph where there are none: the work is simply done again."""
    results = work()

    def replay() -> None:
        for place, value in zip(results, work(), strict=True):
            place.copy_(value)

    return results, replay
