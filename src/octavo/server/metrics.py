"""What the server counts, under vLLM's names: https://docs.vllm.ai/en/latest/usage/metrics.html

The engine's own counters come with its snapshots (`Load`); what only this side of the wire can see is counted here.
"""

from __future__ import annotations

from collections import Counter

from octavo.client.verbs import Load
from octavo.server.histogram import Histogram, one_two_five
from octavo.server.request_record import RequestRecord

TOKENS_OF_A_STEP = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
COMPLETIONS = (1, 2, 5, 10, 20)
TO_FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
BETWEEN_TOKENS = (
    *(0.001, 0.0025, 0.005),  # vLLM's begin at 10 ms, above what a small model takes for a step
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
OF_A_REQUEST = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
OF_HTTP = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

_TIMES = (
    ("e2e_request_latency_seconds", "latency"),
    ("request_queue_time_seconds", "queue_time"),
    ("request_prefill_time_seconds", "prefill_time"),
    ("request_decode_time_seconds", "decode_time"),
    ("request_inference_time_seconds", "inference_time"),
    ("request_time_per_output_token_seconds", "time_per_output_token"),
)
"""Histogram -> the property of a record that it counts, where the record has it."""


class Metrics:
    """The counts of one server process. Used from its event loop only.

    Attributes:
        histograms: by name, without prefix.
        http_requests: by (method, route, status).
        http_durations: seconds until the answer's last byte, by (method, route).
    """

    def __init__(self, token_limit: int) -> None:
        lengths = one_two_five(token_limit)
        self.histograms = {
            "time_to_first_token_seconds": Histogram(TO_FIRST_TOKEN),
            "inter_token_latency_seconds": Histogram(BETWEEN_TOKENS),
            "request_time_per_output_token_seconds": Histogram(BETWEEN_TOKENS),
            **{name: Histogram(OF_A_REQUEST) for name, _ in _TIMES if "token" not in name},
            "request_prompt_tokens": Histogram(lengths),
            "request_generation_tokens": Histogram(lengths),
            "request_max_num_generation_tokens": Histogram(lengths),
            "request_params_max_tokens": Histogram(lengths),
            "request_params_n": Histogram(COMPLETIONS),
            "iteration_tokens_total": Histogram(TOKENS_OF_A_STEP),
        }
        self.http_requests: Counter[tuple[str, str, str]] = Counter()
        self.http_durations: dict[tuple[str, str], Histogram] = {}
        self._first = self.histograms["time_to_first_token_seconds"]
        self._between = self.histograms["inter_token_latency_seconds"]
        self._load = Load()

    def first_token(self, seconds: float) -> None:
        """A request's first token came so long after the request."""
        self._first.observe(seconds)

    def next_tokens(self, seconds: float, count: int) -> None:
        """``count`` tokens of a completion came together, so long after the ones before."""
        self._between.observe(seconds / count, count)

    def step(self, load: Load) -> None:
        """See a snapshot: the tokens of the steps since the last one. Cheap when there was none."""
        steps = load.steps - self._load.steps
        if steps > 0:
            tokens = _computed(load) - _computed(self._load)
            self.histograms["iteration_tokens_total"].observe(tokens / steps, steps)
            self._load = load

    def finished(self, record: RequestRecord) -> None:
        """Count a request that has ended. A `Sink`."""
        if record.finish_reason == "refused":
            return  # it had no life in the engine; its status is among the HTTP counters
        self._observe("request_prompt_tokens", record.prompt_tokens)
        self._observe("request_generation_tokens", record.output_tokens)
        self._observe("request_max_num_generation_tokens", record.longest_output)
        for name, of in _TIMES:
            self._observe(name, getattr(record, of))
        if record.params is not None:
            self._observe("request_params_n", record.params.n)
            self._observe("request_params_max_tokens", record.params.max_tokens)

    def http(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answered HTTP request. ``route`` is the pattern, so that callers cannot make new series."""
        self.http_requests[method, route, str(status)] += 1
        self.http_durations.setdefault((method, route), Histogram(OF_HTTP)).observe(seconds)

    def _observe(self, name: str, value: float | None) -> None:
        if value is not None:
            self.histograms[name].observe(value)


def _computed(load: Load) -> int:
    """Tokens since the start. A prompt counts when it is admitted, but for what the prefix cache has of it."""
    return load.prompt_tokens - load.cached_tokens + load.generated_tokens
