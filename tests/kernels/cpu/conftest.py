from __future__ import annotations

import pytest

from helpers_native import INSTRUCTION_SETS, native_for
from octavo.kernels.cpu.native import Native


@pytest.fixture(scope="session", params=INSTRUCTION_SETS)
def native(request, tmp_path_factory) -> Native:
    """The kernels for each set of instructions that this machine has."""
    return native_for(request.param, tmp_path_factory.mktemp("native"))
