"""``/metrics``: the counts as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from octavo.client.verbs import EngineClient, Load
from octavo.server.histogram import Histogram
from octavo.server.metrics import Metrics

PREFIXES = ("octavo", "vllm")
FINISH_REASONS = ("stop", "length", "abort", "error")

_LABELS = ("model_name", "engine")
_GAUGES: tuple[tuple[str, str, Callable[[Load], float]], ...] = (
    ("num_requests_running", "Requests that take part in steps.", lambda load: load.running),
    ("num_requests_waiting", "Requests that wait for a place.", lambda load: load.waiting),
    ("num_waiting_tokens", "Tokens that waiting requests have still to compute.", lambda load: load.waiting_tokens),
)
_COUNTERS: tuple[tuple[str, str, Callable[[Load], float]], ...] = (
    ("engine_steps", "Steps that have come back.", lambda load: load.steps),
    ("prompt_tokens", "Prompt tokens read.", lambda load: load.prompt_tokens),
    ("generation_tokens", "Tokens generated.", lambda load: load.generated_tokens),
    ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", lambda load: load.prompt_tokens),
    ("prefix_cache_hits", "Prompt tokens found in the prefix cache.", lambda load: load.cached_tokens),
    ("num_preemptions", "Times that a request gave up its blocks.", lambda load: load.preemptions),
)
_HELP = {
    "time_to_first_token_seconds": "From a request's coming to its first token.",
    "inter_token_latency_seconds": "From one token of a completion to the next.",
    "request_time_per_output_token_seconds": "Mean time of a request's tokens after its first one.",
    "e2e_request_latency_seconds": "From a request's coming to its end.",
    "request_queue_time_seconds": "From a request's coming to its first step.",
    "request_prefill_time_seconds": "From a request's first step to its first token.",
    "request_decode_time_seconds": "From a request's first token to its last.",
    "request_inference_time_seconds": "From a request's first step to its end.",
    "request_prompt_tokens": "Tokens of a request's prompt.",
    "request_generation_tokens": "Tokens generated for a request.",
    "request_max_num_generation_tokens": "Tokens of a request's longest completion.",
    "request_params_max_tokens": "The max_tokens that requests ask for.",
    "request_params_n": "The n that requests ask for.",
    "iteration_tokens_total": "Tokens of a step.",
}

_OLD_NAMES = {
    "inter_token_latency_seconds": "time_per_output_token_seconds",
    "kv_cache_usage_perc": "gpu_cache_usage_perc",
    "prefix_cache_queries": "gpu_prefix_cache_queries",
    "prefix_cache_hits": "gpu_prefix_cache_hits",
}
"""What vLLM called them before: many dashboards still do. Exported under vLLM's prefix only."""


@dataclass(frozen=True, eq=False)  # the registry knows it by identity
class Exporter(Collector):
    """Turns counts into Prometheus' families when it is scraped.

    Attributes:
        prefix: of the names: "octavo", or "vllm" for dashboards that know vLLM.
        model: the served name, which all of the engine's series carry.
        up: whether the engine is well.
    """

    client: EngineClient
    metrics: Metrics
    model: str
    prefix: str
    up: Callable[[], bool]

    def collect(self) -> Iterator[Metric]:
        for family in self._families():
            yield family
            old = _OLD_NAMES.get(family.name.removeprefix("vllm:"))
            if old is not None:
                yield _renamed(family, f"{self.prefix}:{old}")

    def _families(self) -> Iterator[Metric]:
        yield from self._of_load(self.client.load())
        for name, histogram in self.metrics.histograms.items():
            yield self._histogram(f"{self.prefix}:{name}", _HELP[name], _LABELS, [(self._values, histogram)])
        yield from self._of_http()

    @property
    def _values(self) -> tuple[str, str]:
        return (self.model, "0")

    def _of_load(self, load: Load) -> Iterator[Metric]:
        for name, text, of in _GAUGES:
            yield self._gauge(name, text, of(load))
        yield self._gauge("engine_up", "1 while the engine lives and moves.", float(self.up()))
        usage = load.blocks_used / max(self.client.info.num_blocks, 1)
        yield self._gauge("kv_cache_usage_perc", "Share of the KV cache that requests hold; 1 is all.", usage)
        for name, text, of in _COUNTERS:
            counter = CounterMetricFamily(f"{self.prefix}:{name}", text, labels=_LABELS)
            counter.add_metric(self._values, of(load))
            yield counter
        yield self._success(load)
        yield self._cache_config()

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        gauge = GaugeMetricFamily(f"{self.prefix}:{name}", text, labels=_LABELS)
        gauge.add_metric(self._values, value)
        return gauge

    def _success(self, load: Load) -> Metric:
        """All reasons from the start, so that a rate does not miss the first one."""
        family = CounterMetricFamily(
            f"{self.prefix}:request_success", "Requests that have ended.", labels=(*_LABELS, "finished_reason")
        )
        for reason in dict.fromkeys((*FINISH_REASONS, *load.finished)):
            family.add_metric((*self._values, reason), load.finished.get(reason, 0))
        return family

    def _cache_config(self) -> Metric:
        info = self.client.info
        labels = {"engine": "0", "block_size": str(info.block_size), "num_gpu_blocks": str(info.num_blocks)}
        family = GaugeMetricFamily(f"{self.prefix}:cache_config_info", "The KV cache.", labels=tuple(labels))
        family.add_metric(tuple(labels.values()), 1)
        return family

    def _of_http(self) -> Iterator[Metric]:
        requests = CounterMetricFamily("http_requests", "Answered.", labels=("method", "handler", "status"))
        for labels, count in self.metrics.http_requests.items():
            requests.add_metric(labels, count)
        yield requests
        series = self.metrics.http_durations.items()
        text = "From a request's headers to the last byte of its answer."
        yield self._histogram("http_request_duration_seconds", text, ("method", "handler"), series)

    @staticmethod
    def _histogram(
        name: str, text: str, labels: tuple[str, ...], series: Iterable[tuple[tuple[str, ...], Histogram]]
    ) -> Metric:
        family = HistogramMetricFamily(name, text, labels=labels)
        for values, histogram in series:
            buckets = [(floatToGoString(bound), count) for bound, count in histogram.cumulative()]
            family.add_metric(values, buckets, histogram.total)
        return family


def _renamed(family: Metric, name: str) -> Metric:
    """The same family under another name."""
    copy = Metric(name, family.documentation, family.type)
    for sample in family.samples:
        copy.add_sample(sample.name.replace(family.name, name, 1), sample.labels, sample.value)
    return copy


def metrics_router(exporter: Exporter) -> APIRouter:
    """``GET /metrics``, with the process' own memory, CPU time and open files."""
    registry = CollectorRegistry()
    registry.register(exporter)
    ProcessCollector(registry=registry)
    router = APIRouter()

    @router.get("/metrics", summary="Counts and times for Prometheus")
    async def metrics() -> Response:
        # Always this format: the client's OpenMetrics turns the colon of our names into an underscore.
        return Response(generate_latest(registry), headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})

    return router
