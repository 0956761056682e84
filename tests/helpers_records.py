"""Records of requests that have ended."""

from __future__ import annotations

from typing import Any

from octavo.outputs import RequestMetrics
from octavo.sampling_params import SamplingParams
from octavo.server.caller import Caller
from octavo.server.request_record import RequestRecord

METRICS = RequestMetrics(
    arrival_time=100.0,
    first_scheduled_time=101.0,
    first_token_time=101.5,
    finished_time=103.5,
    num_cached_tokens=16,
    num_preemptions=2,
    waited_for="needs 212 blocks, 96 free",
)


def make_record(**changes: Any) -> RequestRecord:
    values: dict[str, Any] = {
        "id": "cmpl-1",
        "caller": Caller(name="alice", request_id="http-1"),
        "model": "tiny",
        "params": SamplingParams(temperature=0.5, top_p=0.9, max_tokens=7),
        "prompt_tokens": 20,
        "output_tokens": 5,
        "longest_output": 5,
        "finish_reason": "stop",
        "error": None,
        "started_at": 1_700_000_000.25,
        "latency": 3.5,
        "metrics": METRICS,
    }
    return RequestRecord(**{**values, **changes})
