"""Where the Triton kernels are tested: on a GPU if there is one, else on the CPU in Triton's interpreter.

A test that asks for ``device``, or for ``device`` and ``dtype``, runs once for each: in the interpreter with
float32 and float16 (its bfloat16 ``dot`` is wrong), on a GPU (marked ``gpu``) with bfloat16 too. The interpreter
is slow: mark large parameters ``gpu``, and they are left out there, or ask ``interpreted``. Memory from
``torch.empty`` holds NaN or the largest integer during a test, so that what a kernel forgets to write is seen.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import pytest
import torch

# Must be known before triton is imported: kernels are made for one or the other when they are defined.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" or not torch.cuda.is_available()
if INTERPRETED:
    os.environ["TRITON_INTERPRET"] = "1"
    if importlib.util.find_spec("triton"):
        from helpers_interpreter import allow_loops_over_scalars

        allow_loops_over_scalars()

collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["test_*.py"]

DTYPES = {"cpu": (torch.float32, torch.float16), "cuda": (torch.float32, torch.float16, torch.bfloat16)}
MARKS = {
    "cpu": [pytest.mark.skipif(not INTERPRETED, reason="kernels are compiled for the GPU")],
    "cuda": [pytest.mark.gpu, pytest.mark.skipif(INTERPRETED, reason="needs a GPU, and TRITON_INTERPRET unset")],
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise by device and by the dtypes that it can compute with."""
    if "dtype" in metafunc.fixturenames:
        cases = [
            pytest.param(device, dtype, marks=MARKS[device], id=f"{device}-{str(dtype).removeprefix('torch.')}")
            for device, dtypes in DTYPES.items()
            for dtype in dtypes
        ]
        metafunc.parametrize(("device", "dtype"), cases)
    elif "device" in metafunc.fixturenames:
        metafunc.parametrize("device", [pytest.param(device, marks=MARKS[device]) for device in DTYPES])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked for the GPU by another parameter than the device."""
    unwanted = [item for item in items if _device(item) == "cpu" and item.get_closest_marker("gpu")]
    if unwanted:
        config.hook.pytest_deselected(items=unwanted)
        items[:] = [item for item in items if item not in set(unwanted)]


def _device(item: pytest.Item) -> str | None:
    callspec = getattr(item, "callspec", None)
    return callspec.params.get("device") if callspec and "kernels/triton" in item.path.as_posix() else None


@pytest.fixture
def dtypes(device: str) -> tuple[torch.dtype, ...]:
    """The dtypes that kernels can be tested with on ``device``."""
    return DTYPES[device]


@pytest.fixture
def interpreted(device: str) -> bool:
    """Whether kernels run in the interpreter: use tiny shapes, no inline assembly, no programmatic launches."""
    return device == "cpu"


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fill what ``torch.empty`` gives with NaN (floating point) or the largest number (integers)."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
