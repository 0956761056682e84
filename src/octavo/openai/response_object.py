"""The answer of ``/v1/responses``: one object, which its stream's events show as it grows."""

from __future__ import annotations

from typing import Any

import msgspec

from octavo.openai.metrics import Metrics
from octavo.openai.response_request import ResponsesRequest
from octavo.sampling_params import SamplingParams


class InputDetails(msgspec.Struct):
    cached_tokens: int


class OutputDetails(msgspec.Struct):
    reasoning_tokens: int


class ResponseUsage(msgspec.Struct):
    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputDetails
    output_tokens_details: OutputDetails


class IncompleteDetails(msgspec.Struct):
    reason: str


class ResponseObject(msgspec.Struct, kw_only=True):
    """A response: what was asked, and what has come of it so far. ``metrics`` is our own addition.

    Attributes:
        status: "in_progress", "completed", "incomplete" (a limit was reached), "cancelled" (it was aborted), "failed".
    """

    id: str
    created_at: int
    model: str
    status: str
    output: list[dict[str, Any]]
    instructions: str | None
    max_output_tokens: int | None
    temperature: float
    top_p: float
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    parallel_tool_calls: bool
    text: dict[str, Any]
    reasoning: dict[str, Any]
    metadata: dict[str, str]
    usage: ResponseUsage | None = None
    metrics: Metrics | None = None
    error: dict[str, str] | None = None
    incomplete_details: IncompleteDetails | None = None
    previous_response_id: None = None
    truncation: str = "disabled"
    store: bool = False
    background: bool = False
    object: str = "response"


def new_response(body: ResponsesRequest, params: SamplingParams, name: str, created: int, model: str) -> ResponseObject:
    """The response before its first word."""
    return ResponseObject(
        id=name,
        created_at=created,
        model=model,
        status="in_progress",
        output=[],
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        tools=body.tools or [],
        tool_choice=body.tool_choice or "auto",
        parallel_tool_calls=body.parallel_tool_calls is not False,
        text=body.text or {"format": {"type": "text"}},
        reasoning=body.reasoning or {"effort": None, "summary": None},
        metadata=body.metadata or {},
    )


def response_usage(read: int, cached: int, written: int, reasoned: int) -> ResponseUsage:
    return ResponseUsage(read, written, read + written, InputDetails(cached), OutputDetails(reasoned))


def end_of(finish_reason: str | None) -> tuple[str, IncompleteDetails | None]:
    """The status of a response that is over, and why it is incomplete."""
    if finish_reason == "length":
        return "incomplete", IncompleteDetails("max_output_tokens")
    return ("cancelled" if finish_reason == "abort" else "completed"), None
