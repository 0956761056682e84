"""``octavo bench``."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from helpers_cli import FAST, make_chat_model
from octavo import LLM
from octavo.bench.latency import measure_latency
from octavo.bench.throughput import measure_throughput
from octavo.bench.workload import LengthRange, Work, random_work
from octavo.cli.bench import bench
from octavo.errors import RequestError
from octavo.version import __version__


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("bench") / "chat")


def call(name: str, model: Path, *arguments: str) -> Result:
    result = CliRunner().invoke(bench, [name, str(model), *FAST, *arguments])
    if isinstance(result.exception, Exception):
        raise result.exception
    return result


def values(table: str) -> dict[str, str]:
    """Label -> text of the printed lines."""
    return dict(line.split("  ", 1) for line in table.splitlines() if line)


def rows(result: Result) -> dict[str, str]:
    return {label.strip(): text.strip() for label, text in values(result.stdout).items()}


def test_throughput_as_a_table_and_as_json(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    arguments = [
        "--num-prompts",
        "7",
        "--input-len",
        "3:20",
        "--output-len",
        "2:6",
        "--concurrency",
        "3",
        "--seed",
        "5",
    ]
    result = call("throughput", model, *arguments, "--json", str(path))
    report = json.loads(path.read_text())
    found, environment, table = report["results"], report["environment"], rows(result)
    rng = random.Random(5)
    work = random_work(rng, 7, 602, LengthRange(3, 20), LengthRange(2, 6))
    assert report["benchmark"] == "throughput"
    assert report["options"] == {"num_prompts": 7, "input_len": "3:20", "output_len": "2:6", "seed": 5}
    assert found["requests"] == 7
    assert found["prompt_tokens"] == sum(len(w.token_ids) for w in work)
    assert found["output_tokens"] == sum(w.output_len for w in work)
    assert found["output_tokens_per_second"] == pytest.approx(found["output_tokens"] / found["seconds"])
    assert found["step_time"]["count"] == found["steps"]
    assert found["step_time"]["mean"] * found["steps"] <= found["seconds"]
    assert environment["max_num_seqs"] == 3
    assert (environment["octavo"], environment["torch"]) == (__version__, str(torch.__version__))
    assert (environment["dtype"], environment["device"]) == ("float32", "cpu")
    assert {"commit", "date", "python", "threads", "processor"} <= set(environment)
    assert table["output tokens"] == str(found["output_tokens"])
    assert table["output tok/s"] == f"{found['output_tokens_per_second']:.2f}"
    assert table["dtype"] == "float32"


def test_latency_as_a_table_and_as_json(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    arguments = ["--input-len", "8", "--output-len", "5", "--batch-size", "2", "--iterations", "3", "--warmup", "0"]
    table = rows(call("latency", model, *arguments, "--json", str(path)))
    found = json.loads(path.read_text())["results"]
    assert [found[name]["count"] for name in ("time_to_first_token", "time_per_output_token", "end_to_end")] == [
        6,
        24,
        6,
    ]
    first, between, whole = found.values()
    assert whole["mean"] == pytest.approx(first["mean"] + 4 * between["mean"])
    assert set(table) > {"time to first token", "time per output token", "end to end", "batch size", "torch"}


def test_profile_as_tables_and_as_json(model: Path, tmp_path: Path) -> None:
    path, trace = tmp_path / "report.json", tmp_path / "trace.json"
    arguments = ["--rows", "2", "--context", "9", "--steps", "3", "--device", "cpu", "--trace", str(trace)]
    result = call("profile", model, *arguments, "--json", str(path))
    report = json.loads(path.read_text())
    found = report["results"]
    assert report["options"] == {"rows": 2, "context": 9, "steps": 3, "seed": 0}
    assert (found["unit"], found["rows"], found["recorded"], found["step_time"]["count"]) == ("step", 2, 3, 3)
    assert found["kernel_time"] == pytest.approx(sum(kernel["seconds"] for kernel in found["kernels"]))
    assert report["environment"]["device"] == "cpu"
    assert result.stdout.splitlines()[-1].endswith("others")
    assert f"  {found['kernels'][0]['name']}" in result.stdout
    assert trace.stat().st_size > 0


def test_profile_of_a_prompt(model: Path) -> None:
    table = rows(call("profile", model, "--prompt", "300", "--steps", "2", "--device", "cpu"))
    assert table["tokens a row"] == "300"
    assert table["prompts recorded"].startswith("1, ")


def test_startup_as_a_table_and_as_json(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_NATIVE", "0")
    path = tmp_path / "report.json"
    table = rows(call("startup", model, "--runs", "1", "--json", str(path), "--device", "cpu"))
    report = json.loads(path.read_text())
    found = report["results"]["cold"]
    assert (report["benchmark"], report["options"], report["results"]["warm"]) == ("startup", {"runs": 1}, [])
    assert 0 < found["until_ready"] < found["until_first_token"]
    assert table["until first token"] == f"{found['until_first_token']:.3f} s"
    assert table["octavo"] == __version__


def test_a_config_alone_is_enough_for_random_weights(model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((model / "config.json").read_bytes())
    arguments = ["--load-format", "dummy", "--input-len", "4", "--output-len", "3"]
    assert rows(call("throughput", tmp_path, *arguments, "--num-prompts", "2"))["output tokens"] == "6"


def test_what_does_not_fit_is_an_error(model: Path) -> None:
    with pytest.raises(RequestError, match="max_tokens from 1 to 8 is accepted"):
        call(
            "throughput", model, "--max-model-len", "16", "--input-len", "8", "--output-len", "9", "--num-prompts", "1"
        )


@pytest.fixture(scope="module")
def llm(model: Path) -> LLM:
    return LLM(str(model), kv_cache_memory=8 << 20, async_scheduling=False, max_num_seqs=2)


def ticks() -> Any:
    """A clock that gains a second each time it is looked at."""
    count = itertools.count()
    return lambda: float(next(count))


def test_throughput_counts_steps_and_seconds(llm: LLM) -> None:
    """Three equal requests, two at a time: three steps for two of them, three for the last."""
    work = [Work([5 + i] * 4, 3) for i in range(3)]
    seen: list[int] = []
    result = measure_throughput(llm.engine, work, report=seen.append, clock=ticks())
    assert (result.requests, result.prompt_tokens, result.output_tokens) == (3, 12, 9)
    assert (result.steps, result.seconds, result.preemptions) == (6, 7.0, 0)
    assert result.step_time is not None
    assert (result.step_time.count, result.step_time.mean) == (6, 1.0)
    assert seen == [0, 0, 2, 2, 2, 3]
    assert llm.engine.listeners == []


def test_throughput_counts_preemptions(model: Path) -> None:
    with LLM(str(model), kv_cache_memory=8 << 20, block_size=1, max_model_len=40) as probe:
        block = probe.engine.ledger.kv_cache // probe.engine.ledger.num_blocks
    with LLM(str(model), kv_cache_memory=60 * block, block_size=1, max_model_len=40) as llm:
        result = measure_throughput(llm.engine, [Work([5 + i] * 10, 30) for i in range(3)])
    assert result.preemptions > 0
    assert result.output_tokens == 90


def test_latency_sees_each_token_when_it_comes(llm: LLM) -> None:
    """The clock is looked at on arrival and after each step."""
    timings = measure_latency(llm.engine, [[Work([5] * 4, 3), Work([6] * 4, 2)], [Work([7], 1)]], clock=ticks())
    assert timings.first == [1.0, 1.0, 1.0]
    assert timings.between == [1.0, 1.0, 1.0]
    assert sorted(timings.whole) == [1.0, 2.0, 3.0]


def test_a_stopped_benchmark_leaves_nothing_behind(llm: LLM) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    for measure in (
        lambda: measure_throughput(llm.engine, [Work([5], 9)], check=stop),
        lambda: measure_latency(llm.engine, [[Work([5], 9)]], check=stop),
    ):
        with pytest.raises(KeyboardInterrupt):
            measure()
        assert not llm.engine.has_unfinished_requests()
        assert llm.engine.listeners == []
