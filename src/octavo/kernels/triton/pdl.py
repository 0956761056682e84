"""Programmatic dependent launch (PDL): a kernel begins while the one before it still runs.

From compute capability 9.0 on, a kernel launched with ``launch_pdl=True`` may begin as soon as every program of the
kernel before it has called ``trigger`` or ended, instead of when the last one has ended and its writes are seen. It
then does what depends on nobody, above all requests its weights from memory, and calls ``wait``, which returns when
the kernel before has ended and all that it wrote can be seen. On an H100 a chain of small products takes about 1 us
less a kernel.

**The rule.** Each program of a kernel that is launched so calls ``wait`` (1) before it reads anything that a kernel
writes, and (2) before it writes anything. Before that it reads parameters of the model only.

Why that is enough. ``wait`` returns when the kernel before has *ended*, and that one cannot have ended before its own
``wait`` returned in each of its programs. So by induction every older kernel has ended, too, however early the
triggers between them were:

- *Read after write*: what a kernel reads after ``wait`` was written by kernels that have ended.
- *Write after read*: memory that ``torch.empty`` hands out again, inside a graph above all, may still be read by the
  kernel before, or by older ones that it has not waited for yet. None of them runs any more when ``wait`` returns,
  so a store after it overwrites nothing that is needed. A store before it would.
- A kernel without the attribute (cuBLAS, a copy, any eager operation) begins when the one before has ended, which by
  the same induction is when all have. It never triggers, so a kernel after it begins when it has ended.

A trigger is only about time, never about what is safe: it frees nothing that ``wait`` guards. Programs of the next
kernel wait on multiprocessors that are already free, as all programs of this one have begun when it takes effect.
A kernel that wants to read *before* its ``wait`` what a kernel has written (old keys and values, say) needs a kernel
between that triggers only after its own ``wait``: then the writer has ended when the reader begins.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from octavo.kernels.triton.capability import HOPPER, capability

NEVER, FIRST, AFTER_WAIT, AFTER_SUMS = range(4)
"""When a kernel triggers the next one."""


def use_pdl(device: torch.device) -> bool:
    """Whether kernels are launched so on ``device``; the environment variable OCTAVO_PDL=0 says no."""
    return capability(device) >= (HOPPER, 0) and os.environ.get("OCTAVO_PDL") != "0"


@triton.jit
def wait(PDL: tl.constexpr) -> None:
    """Wait until all kernels before this one have ended."""
    if PDL:
        gdc_wait()


@triton.jit
def trigger(PDL: tl.constexpr) -> None:
    """Let the next kernel begin, once all programs have called this."""
    if PDL:
        gdc_launch_dependents()
