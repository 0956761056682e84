"""What a request says about tools: which may be called, whether one must, whether several may at once."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.text.output.calls import Function


@dataclass(frozen=True)
class ToolUse:
    """Which functions a completion may call.

    Attributes:
        functions: none of them: it may not call any.
        required: it consists of calls, after its reasoning.
        parallel: it may call several times.
    """

    functions: tuple[Function, ...] = ()
    required: bool = False
    parallel: bool = True
