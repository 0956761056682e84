"""The names that requests may ask for: the model's own ones, and those of loaded adapters."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.client.verbs import EngineClient
from octavo.errors import RequestError
from octavo.openai.errors import FieldError


class ModelNotFoundError(FieldError):
    """A request asks for a model that is not served."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(f"the model {name!r:.200} does not exist; accepted: {', '.join(known)}", "model")
        self.code = "model_not_found"


@dataclass(frozen=True, slots=True)
class Served:
    """A model that a request asked for: its name for the answer, and its adapter if it is one."""

    name: str
    lora: str | None = None


@dataclass(frozen=True, slots=True)
class Names:
    """Names of the model, at least one; adapters are the client's to know, for they come and go."""

    own: tuple[str, ...]
    client: EngineClient

    def find(self, name: str | None) -> Served:
        """Raises `ModelNotFoundError`."""
        if name is None:
            return Served(self.own[0])
        if name in self.own:
            return Served(name)
        adapters = tuple(adapter.name for adapter in self.client.loras())
        if name in adapters:
            return Served(name, name)
        raise ModelNotFoundError(name, (*self.own, *adapters))

    def check_free(self, name: str) -> None:
        """Raise ``RequestError`` if an adapter may not have this name."""
        if name in self.own:
            raise RequestError(f"lora_name={name!r:.200} is the model's own name; accepted: another one")
