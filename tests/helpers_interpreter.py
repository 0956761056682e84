"""A repair of Triton 3.6's interpreter for numpy 2.4, which no longer converts arrays of one element to integers."""

from __future__ import annotations

from typing import Any

from triton.runtime import interpreter


def allow_loops_over_scalars() -> None:
    """Let kernels say ``range(0, n)`` with a scalar ``n`` that was loaded or computed."""
    patch = interpreter._patch_lang_tensor

    def patch_and_repair(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_and_repair
