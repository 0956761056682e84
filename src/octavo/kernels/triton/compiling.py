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
from contextlib import contextmanager
from typing import Any

import torch
from triton.runtime._async_compile import AsyncCompileMode
from triton.runtime.jit import JITFunction

MAX_THREADS = 32


@contextmanager
def compile_only(device: torch.device) -> Iterator[None]:
    """While this is entered, Triton kernels are not launched: results are whatever was in their memory. When it is
    left, all that would have been launched are compiled and loaded.

    A kernel that does not compile says so when it is launched.
    """
    launch = JITFunction.run

    def only_compile(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        return launch(self, *args, grid=grid, warmup=True, **options)

    with _pool(device) as pool, AsyncCompileMode(_Loading(pool), ignore_errors=True):
        JITFunction.run = only_compile
        try:
            yield
        finally:
            JITFunction.run = launch


def _pool(device: torch.device) -> ThreadPoolExecutor:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ThreadPoolExecutor(
        min(cores, MAX_THREADS), "octavo-compile", initializer=torch.cuda.set_device, initargs=(device,)
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
