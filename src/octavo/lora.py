"""LoRA adapters as callers know them. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from octavo.errors import RequestError


@dataclass(frozen=True, slots=True)
class LoRARequest:
    """Which adapter a request is to have.

    Attributes:
        lora_name: one name is one adapter, as long as it is loaded.
        lora_int_id: not needed; there so that vLLM's three arguments have their places.
        lora_path: a folder in PEFT's format; not needed if the adapter is loaded already.
    """

    lora_name: str
    lora_int_id: int | None = None
    lora_path: str = ""

    def __post_init__(self) -> None:
        check_lora_name(self.lora_name)
        object.__setattr__(self, "lora_path", str(self.lora_path))


class AdapterInfo(msgspec.Struct, frozen=True):
    """A LoRA adapter that is loaded: its name, which requests use as their model, and where it came from."""

    name: str
    path: str
    rank: int


def check_lora_name(name: Any) -> str:
    """``RequestError`` unless it is a text that is not empty, in one line."""
    if not isinstance(name, str) or not name or not name.isprintable():
        raise RequestError(
            f"the name of a LoRA adapter is {name!r:.80}; accepted: a text of one line that is not empty"
        )
    return name
