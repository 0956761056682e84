"""/metrics as Prometheus reads it."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families as parse

from helpers_scripted_engine import ScriptedEngine
from octavo.client.verbs import Load
from octavo.server.exposition import Exporter, metrics_router
from octavo.server.metrics import Metrics

LOAD = Load(
    steps=9,
    running=3,
    waiting=2,
    waiting_tokens=70,
    blocks_used=25,
    prompt_tokens=40,
    generated_tokens=11,
    cached_tokens=16,
    preemptions=1,
    finished={"stop": 4, "deadline": 1},
)
VLLM_NAMES = {
    *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prefix_cache_queries_total"),
    *("prefix_cache_hits_total", "num_preemptions_total", "prompt_tokens_total", "generation_tokens_total"),
    *("request_success_total", "request_prompt_tokens_bucket", "request_generation_tokens_bucket"),
    *("iteration_tokens_total_bucket", "request_params_n_bucket", "request_params_max_tokens_bucket"),
    *("time_to_first_token_seconds_bucket", "inter_token_latency_seconds_bucket", "e2e_request_latency_seconds_sum"),
    *("request_time_per_output_token_seconds_count", "request_queue_time_seconds_bucket"),
    *("request_inference_time_seconds_bucket", "request_prefill_time_seconds_bucket"),
    *("request_decode_time_seconds_bucket", "cache_config_info"),
}


def app(metrics: Metrics, prefix: str = "octavo", up: bool = True) -> TestClient:
    api = FastAPI()
    api.include_router(metrics_router(Exporter(ScriptedEngine(state=LOAD), metrics, "tiny", prefix, lambda: up)))
    return TestClient(api)


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Name and sorted label values -> value."""
    found = [sample for family in parse(text) for sample in family.samples]
    return {(s.name, *sorted(s.labels.values())): s.value for s in found}


def test_the_engines_counts() -> None:
    found = samples(app(Metrics(300)).get("/metrics").text)
    series = ("0", "tiny")
    assert found["octavo:num_requests_running", *series] == 3
    assert found["octavo:num_requests_waiting", *series] == 2
    assert found["octavo:kv_cache_usage_perc", *series] == 0.5
    assert found["octavo:prefix_cache_queries_total", *series] == 40
    assert found["octavo:prefix_cache_hits_total", *series] == 16
    assert found["octavo:generation_tokens_total", *series] == 11
    assert found["octavo:request_success_total", "0", "stop", "tiny"] == 4
    assert found["octavo:request_success_total", "0", "length", "tiny"] == 0
    assert found["octavo:request_success_total", "0", "deadline", "tiny"] == 1
    assert found["octavo:engine_up", *series] == 1
    assert found["process_resident_memory_bytes",] > 1 << 20


def test_vllms_names_under_its_prefix() -> None:
    text = app(Metrics(300), "vllm", up=False).get("/metrics").text
    names = {name for name, *_ in samples(text)}
    assert {f"vllm:{name}" for name in VLLM_NAMES} <= names
    assert samples(text)["vllm:engine_up", "0", "tiny"] == 0
    assert not any(name.startswith("octavo") for name in names)


@pytest.mark.parametrize("accept", ["*/*", "application/openmetrics-text; version=1.0.0"])
def test_histograms_keep_their_names_whatever_is_accepted(accept: str) -> None:
    metrics = Metrics(300)
    metrics.first_token(0.03)
    metrics.next_tokens(0.2, 4)
    metrics.http("POST", "/v1/completions", 200, 0.7)
    answer = app(metrics).get("/metrics", headers={"accept": accept})
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = samples(answer.text)
    first, between = "octavo:time_to_first_token_seconds", "octavo:inter_token_latency_seconds"
    assert [found[f"{first}_bucket", *sorted((le, "0", "tiny"))] for le in ("0.02", "0.04", "+Inf")] == [0, 1, 1]
    assert found["octavo:request_params_n_bucket", "0", "1.0", "tiny"] == 0
    assert found[f"{between}_count", "0", "tiny"] == 4
    assert found[f"{between}_sum", "0", "tiny"] == pytest.approx(0.2)
    assert found["http_requests_total", "/v1/completions", "200", "POST"] == 1
    assert found["http_request_duration_seconds_sum", "/v1/completions", "POST"] == pytest.approx(0.7)


def test_vllms_old_names_have_the_same_values() -> None:
    metrics = Metrics(300)
    metrics.next_tokens(0.2, 4)
    found = samples(app(metrics, "vllm").get("/metrics").text)
    assert found["vllm:time_per_output_token_seconds_count", "0", "tiny"] == 4
    assert found["vllm:gpu_cache_usage_perc", "0", "tiny"] == 0.5
    assert found["vllm:gpu_prefix_cache_hits_total", "0", "tiny"] == 16
    assert not any("gpu" in name for name, *_ in samples(app(metrics).get("/metrics").text) if "num_gpu" not in name)
