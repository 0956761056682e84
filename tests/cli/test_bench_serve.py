"""``octavo bench serve``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from helpers_fake_openai import FakeOpenAI, serving
from octavo.cli.bench import bench
from octavo.errors import OctavoError, UsageError
from octavo.version import __version__


def call(*arguments: str) -> Result:
    result = CliRunner().invoke(bench, ["serve", *arguments])
    if isinstance(result.exception, Exception):
        raise result.exception
    return result


def test_a_load_as_a_table_and_as_json(tmp_path: Path) -> None:
    path, fake = tmp_path / "report.json", FakeOpenAI(first=0.01)
    options = ["--num-prompts", "8", "--input-len", "3:9", "--output-len", "2:4", "--concurrency", "4"]
    more = ["--goodput", "ttft:60000 itl:60000", "--extra-body", '{"temperature": 0}', "--warmup", "2", "--seed", "5"]
    with serving(fake) as url:
        result = call(url, *options, *more, "--api-key", "SECRET", "--json", str(path))
    report = json.loads(path.read_text())
    found, environment = report["results"], report["environment"]
    assert report["benchmark"] == "serve"
    assert report["options"]["goodput"] == "ttft:60000 itl:60000"
    assert report["options"]["input_len"] == "3:9"
    assert (found["requests"], found["completed"], found["errors"]) == (8, 8, {})
    assert found["output_tokens"] == sum(body["max_tokens"] for body in fake.bodies[2:])
    assert found["goodput"] == pytest.approx(found["requests_per_second"])
    assert found["time_to_first_token"]["count"] == 8
    assert found["time_to_first_token"]["p95"] >= 0.01
    assert (environment["octavo"], environment["served_model"]) == (__version__, "fake-1")
    assert len(fake.bodies) == 10
    assert {(body["model"], body["temperature"], body["ignore_eos"]) for body in fake.bodies} == {("fake-1", 0, True)}
    assert {len(body["prompt"].split()) for body in fake.bodies} <= set(range(3, 10))
    assert "time to first token" in result.stdout
    assert "SECRET" not in result.stdout + path.read_text()


def test_a_trace_and_a_rate(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps({"input_length": i, "output_length": i}) + "\n" for i in (1, 2, 3)))
    fake = FakeOpenAI()
    with serving(fake) as url:
        call(url, "--trace", str(trace), "--rate", "100", "--arrivals", "gamma", "--burstiness", "2", "--warmup", "0")
        call(url, "--api", "completions", "--num-prompts", "2", "--prompt-ids", "50", "--prefix-len", "4")
    assert sorted((len(b["prompt"].split()), b["max_tokens"]) for b in fake.bodies[:3]) == [(1, 1), (2, 2), (3, 3)]
    assert fake.bodies[3]["prompt"][:4] == fake.bodies[4]["prompt"][:4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["localhost:8000"], "accepted: http://HOST:PORT"),
        (["--burstiness", "2"], "accepted with --arrivals gamma"),
        (["--ramp", "2"], "--ramp needs a --rate"),
        (["--tokenizer", "a", "--prompt-ids", "3"], "accepted: one of them"),
        (["--api", "chat", "--prompt-ids", "3"], "accepted: --prompt-ids with --api completions"),
        (["--disconnect", "0.7", "--malformed", "0.7"], "accepted: up to 1 together"),
        (["--extra-body", "[]"], "is no JSON object"),
        (["--goodput", "speed:3"], "'speed:3' is no bound"),
        (["--concurrency", "1", "--processes", "2"], "accepted: from --processes"),
        (["--trace", "/nowhere"], "cannot read the trace"),
    ],
)
def test_bad_usage_is_told_before_anything_is_sent(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call(*arguments)


def test_a_first_request_that_fails_ends_it() -> None:
    with (
        serving(FakeOpenAI(manner="status")) as url,
        pytest.raises(OctavoError, match="first request failed: HTTP 429: full"),
    ):
        call(url)


def test_a_load_of_which_nothing_was_answered_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with (
        serving(FakeOpenAI(manner="status")) as url,
        pytest.raises(OctavoError, match="no request was answered: HTTP 429"),
    ):
        call(url, "--num-prompts", "3", "--warmup", "0", "--json", str(path))
    assert json.loads(path.read_text())["results"]["errors"] == {"HTTP 429": 3}


def test_the_address_may_be_the_one_that_clients_want() -> None:
    for end in ("/v1", "/v1/"):
        fake = FakeOpenAI()
        with serving(fake) as url:
            call(url + end, "--num-prompts", "2", "--warmup", "0")
        assert len(fake.bodies) == 2


@pytest.mark.parametrize(
    ("options", "message"), [([], "give --api-key"), (["--api-key", "b"], "does not know --api-key")]
)
def test_a_key_that_is_missing_or_wrong_is_told(
    monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving(FakeOpenAI(api_key="a")) as url, pytest.raises(OctavoError, match=f"status 401; .*{message}"):
        call(url, *options)


def test_no_torch_is_loaded() -> None:
    code: Any = "import sys; from octavo.cli.bench_serve import serve; import octavo.bench.serve.processes"
    check = "; sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code + check], timeout=60).returncode == 0
