"""LoRA adapters as callers know them. No torch."""

from __future__ import annotations

from collections.abc import Sequence
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


Loras = LoRARequest | Sequence[LoRARequest | None] | None
"""The adapter of all prompts, or one or none for each."""


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


def lora_for_each(loras: Any, count: int) -> list[LoRARequest | None]:
    """The adapter of each of ``count`` prompts; ``RequestError`` for what is none."""
    many = list(loras) if isinstance(loras, list | tuple) else [loras] * count
    if any(not isinstance(lora, LoRARequest | None) for lora in many):
        raise RequestError(
            f"lora_request={loras!r:.80}; accepted: a LoRARequest, or a list with one or None for each prompt"
        )
    if len(many) != count:
        raise RequestError(f"{len(many)} lora_requests for {count} prompts; one for all, or one for each, is needed")
    return many
