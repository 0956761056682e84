"""The KV cache's memory on a CPU."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

from octavo.kernels.forward_batch import KVLayer


def layer() -> KVLayer:
    return KVLayer.zeros(512, 16, 8, 64, torch.float32)  # 16 MiB each


def test_it_begins_as_zeros():
    assert not any(tensor.any() for tensor in layer().tensors)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_does_not_write_to_it():
    keys = layer().keys
    child = os.fork()
    if child == 0:
        keys.numpy()[:] = 1
        os._exit(0)
    os.waitpid(child, 0)
    assert not keys.any()


def test_huge_pages_are_asked_for():
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not enabled.exists() or "[never]" in enabled.read_text():
        pytest.skip("this system has no huge pages")
    keys = layer().keys
    address, inside, flags = keys.data_ptr(), False, ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        span = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if span:
            inside = int(span[1], 16) <= address < int(span[2], 16)
        elif inside and line.startswith("VmFlags"):
            flags = line
    assert " hg" in flags
    assert " sh" not in flags
