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

    @property
    def strict(self) -> bool:
        """Whether calls must hold their schemas: those of all functions, if one of these asks for it."""
        return any(function.strict for function in self.functions)
