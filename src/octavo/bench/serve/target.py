"""The server under load: where it is, and what its requests look like."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from octavo.bench.serve.malformed import malform
from octavo.bench.serve.plan import Planned

PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


@dataclass(frozen=True, slots=True)
class Target:
    """A value that can be sent to other processes.

    Attributes:
        url: without path: ``http://127.0.0.1:8000``.
        api: one of `PATHS`.
        extra: fields for each body, as sampling parameters.
        ignore_eos: ask for answers of full length; an extra field that not all servers know.
        timeout: seconds for one request.
    """

    url: str
    model: str
    api: str = "completions"
    api_key: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    ignore_eos: bool = True
    timeout: float = 600.0

    @property
    def endpoint(self) -> str:
        return self.url.rstrip("/") + PATHS[self.api]

    @property
    def headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        return headers if self.api_key is None else {**headers, "Authorization": f"Bearer {self.api_key}"}

    def body(self, planned: Planned) -> bytes:
        """The request's JSON, or what is to pass for it."""
        fields = {**self._prompt(planned), **self._common(planned.output_len)}
        return msgspec.json.encode(fields) if planned.malformed is None else malform(fields, planned.malformed)

    def _prompt(self, planned: Planned) -> dict[str, Any]:
        if self.api == "chat":
            return {"messages": [{"role": "user", "content": planned.prompt}]}
        return {"prompt": planned.prompt}

    def _common(self, output_len: int) -> dict[str, Any]:
        return {
            "model": self.model,
            "max_tokens": output_len,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"ignore_eos": True} if self.ignore_eos else {}),
            **self.extra,
        }
