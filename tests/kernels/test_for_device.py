"""Which backend a device gets."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch

from octavo.kernels import for_device
from octavo.kernels.cpu.ops import CpuOps
from octavo.kernels.reference.ops import ReferenceOps


def test_a_cpu_gets_its_own_and_anything_else_the_reference():
    assert type(for_device("cpu")) is CpuOps
    assert type(for_device("meta")) is ReferenceOps


def test_a_cpu_does_not_import_triton():
    code = "import sys; from octavo.kernels import for_device; for_device('cpu'); print('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


def test_a_gpu_gets_triton():
    pytest.importorskip("triton")
    assert type(for_device("cuda")).__name__ == "TritonOps"
    assert type(for_device(torch.device("cuda", 0))).__name__ == "TritonOps"


def test_a_gpu_without_triton_warns_and_gets_the_reference(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match=r"triton is not installed \(pip install 'octavo\[gpu\]'\): using plain torch"):
        assert type(for_device("cuda")) is ReferenceOps


def test_an_old_gpu_warns_and_gets_the_reference(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.warns(UserWarning, match=r"Tesla T4 is older than compute capability 8\.0"):
        assert type(for_device("cuda")) is ReferenceOps
