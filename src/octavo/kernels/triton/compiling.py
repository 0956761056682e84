"""Kernels compiled side by side before they are first launched.

A kernel is compiled when it is first launched with arguments of its kind: half a second each, one after the other,
some sixty of them for a model. But what will be launched is known beforehand: go through the steps that can come, and
instead of launching a kernel hand it to a pool of threads. Most of the compiler's work is done outside the interpreter
lock (LLVM, the assembler, and the C compiler, which makes each kernel's launcher).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from triton.runtime.jit import JITFunction

MAX_THREADS = 32


@contextmanager
def compile_only(device: torch.device) -> Iterator[None]:
    """While this is entered, Triton kernels are not launched: results are whatever was in their memory. When it is
    left, all that would have been launched are compiled and loaded.

    A kernel that does not compile says so when it is launched. With a Triton whose compiler cannot be asked so, each is
    compiled here in turn.
    """
    launch = JITFunction.run

    def only_compile(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        return launch(self, *args, grid=grid, warmup=True, **options)

    with _pool(device) as pool, _side_by_side(pool):
        JITFunction.run = only_compile
        try:
            yield
        finally:
            JITFunction.run = launch


def _side_by_side(pool: Executor) -> AbstractContextManager[object]:
    """While this is entered, Triton hands what it has to compile to ``pool``; at the end it waits for all of it."""
    try:
        from triton.runtime._async_compile import AsyncCompileMode
    except ImportError:
        return nullcontext()
    mode: AbstractContextManager[object] = AsyncCompileMode(_Loading(pool), ignore_errors=True)
    return mode


def _pool(device: torch.device) -> ThreadPoolExecutor:
    index = torch.cuda.current_device() if device.index is None else device.index
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ThreadPoolExecutor(
        min(cores, MAX_THREADS), "octavo-compile", initializer=torch.cuda.set_device, initargs=(index,)
    )


class _Loading(Executor):
    """Has each compiled kernel loaded onto the device by the thread that compiled it."""

    def __init__(self, pool: Executor) -> None:
        self._pool = pool

    def submit(self, compile_kernel: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        def compile_and_load() -> Any:
            kernel = compile_kernel(*args, **options)
            _ = kernel.run  # makes the launcher and loads the code
            return kernel

        return self._pool.submit(compile_and_load)
