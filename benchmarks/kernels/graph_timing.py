"""The time of kernels as an engine launches them: in a CUDA graph, without the host between them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch


def graph_us(run: Callable[[], object], calls: int = 1, repeats: int = 15) -> float:
    """Median microseconds of one of the ``calls`` launches of ``run``, from replays of a graph of it."""
    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for _ in range(3):
        graph.replay()
    for start, end in events:
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events) * 1000 / calls


def each_us(launches: Sequence[Callable[[], object]]) -> float:
    """The same of one of ``launches``, each once in the graph."""
    return graph_us(lambda: [launch() for launch in launches], len(launches))
