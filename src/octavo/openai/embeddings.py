"""The bodies of ``/v1/embeddings``: texts or token ids in, vectors out."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from octavo.openai.decode import Fields
from octavo.openai.errors import FieldError
from octavo.openai.metrics import Metrics, metrics_of
from octavo.outputs import RequestOutput

MAX_INPUTS = 2048
"""Of one body, as at OpenAI."""

FORMATS = ("float", "base64")


class EmbeddingRequest(Fields, kw_only=True):
    """``input`` is one text, one list of token ids, or a list of either."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"user", "metadata"})
    UNSUPPORTED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "dimensions": (),
        "additional_data": (),
        "softmax": (),
        "normalize": (True,),
        "messages": (),
    }

    input: str | list[str | int | list[int]]
    model: str | None = None
    encoding_format: str | None = None
    priority: int | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None


class Embedding(msgspec.Struct):
    """A vector of length 1: numbers, or the base64 of little-endian float32."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


class EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct):
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    metrics: Metrics
    object: str = "list"


def inputs_of(body: EmbeddingRequest) -> list[str] | list[list[int]]:
    """The inputs, each a text or a list of token ids. Raises ``FieldError`` for a mixture, and for too many."""
    inputs: list[Any] = [body.input] if isinstance(body.input, str) else body.input
    kinds = {type(one) for one in inputs}
    if len(kinds) != 1:
        raise FieldError("input takes a text, a list of token ids, or a list of one of these", "input")
    if kinds == {int}:
        return [inputs]
    if len(inputs) > MAX_INPUTS:
        raise FieldError(f"input has {len(inputs)} entries; at most {MAX_INPUTS} are accepted", "input")
    return inputs


def check_format(body: EmbeddingRequest) -> bool:
    """Whether vectors are wanted as base64. Raises ``FieldError``."""
    if body.encoding_format not in (None, *FORMATS):
        message = f"encoding_format={body.encoding_format!r:.40}; accepted: {', '.join(FORMATS)}"
        raise FieldError(message, "encoding_format")
    return body.encoding_format == "base64"


def embedding_list(outputs: Sequence[RequestOutput], model: str, as_base64: bool) -> EmbeddingList:
    """The answer. Every output has a vector."""
    data = [Embedding(i, _written(output.embedding or (), as_base64)) for i, output in enumerate(outputs)]
    read = sum(len(output.prompt_token_ids) for output in outputs)
    return EmbeddingList(data, model, EmbeddingUsage(read, read), metrics_of(outputs))


def _written(vector: Sequence[float], as_base64: bool) -> list[float] | str:
    if not as_base64:
        return list(vector)
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
