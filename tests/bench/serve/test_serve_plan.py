"""What a load sends, and when."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers_text import save_bpe, spm_model
from octavo.bench.serve.arrivals import Arrivals
from octavo.bench.serve.malformed import KINDS, malform
from octavo.bench.serve.plan import Planned, make_plan
from octavo.bench.serve.prompts import Prefixes, exact_words, plain_words, token_ids
from octavo.bench.serve.target import Target
from octavo.bench.serve.trace import Recorded, read_trace
from octavo.bench.serve.workload import Workload
from octavo.bench.workload import LengthRange
from octavo.errors import UsageError
from octavo.text.tokenizer import Tokenizer, load_tokenizer


def gaps(arrivals: Arrivals, count: int = 20_000) -> Any:
    return np.diff(arrivals.times(random.Random(0), count), prepend=0.0)


@pytest.mark.parametrize(
    ("arrivals", "deviation"),
    [
        (Arrivals(5.0, "constant"), 0.0),
        (Arrivals(5.0, "poisson"), 0.2),
        (Arrivals(5.0, "poisson", burstiness=9.0), 0.2),
        (Arrivals(5.0, "gamma", burstiness=0.25), 0.4),
        (Arrivals(5.0, "gamma", burstiness=4.0), 0.1),
    ],
)
def test_gaps_have_the_mean_and_spread_of_their_process(arrivals: Arrivals, deviation: float) -> None:
    found = gaps(arrivals)
    assert found.min() >= 0
    assert found.mean() == pytest.approx(0.2, rel=0.05)
    assert found.std() == pytest.approx(deviation, rel=0.05, abs=1e-9)


def test_poisson_gaps_are_exponential() -> None:
    found = gaps(Arrivals(5.0))
    for t in (0.05, 0.2, 0.6):
        assert (found > t).mean() == pytest.approx(math.exp(-5 * t), abs=0.01)


def test_a_ramp_grows_evenly() -> None:
    """Of a constant stream, the number that has come is the rate's integral."""
    times = np.array(Arrivals(10.0, "constant", ramp=4.0).times(random.Random(0), 100))
    for t in (1.0, 2.0, 3.9, 4.0, 6.0, 11.0):
        expected = 10 * t * t / 8 if t < 4 else 10 * (t - 2)
        assert (times <= t + 1e-9).sum() == int(expected + 1e-9)


def test_without_a_rate_all_come_at_once_and_the_seed_decides() -> None:
    assert Arrivals().times(random.Random(0), 3) == [0.0, 0.0, 0.0]
    one, same, other = (Arrivals(3.0).times(random.Random(seed), 5) for seed in (1, 1, 2))
    assert one == same != other


@pytest.fixture(params=["bpe", "spm"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    if request.param == "bpe":
        return load_tokenizer(save_bpe(tmp_path))
    (tmp_path / "tokenizer.model").write_bytes(spm_model())
    return load_tokenizer(tmp_path / "tokenizer.model")


def test_prompts_have_exactly_their_lengths_as_the_server_counts(tokenizer: Tokenizer) -> None:
    lengths = [2, 3, 17, 128, 500] * 5
    prompts = exact_words(tokenizer).make(random.Random(0), lengths, Prefixes())
    assert [len(tokenizer.encode(str(prompt))) for prompt in prompts] == lengths
    assert len(set(prompts)) > 20


def test_prefixes_are_shared_and_come_on_top(tokenizer: Tokenizer) -> None:
    prompts = exact_words(tokenizer).make(random.Random(0), [10] * 40, Prefixes(30, 3))
    ids = [tuple(tokenizer.encode(str(prompt))) for prompt in prompts]
    assert {len(one) for one in ids} == {40}
    assert len({one[:31] for one in ids}) == 3
    assert len(set(ids)) == 40


def test_a_prompt_shorter_than_what_the_tokenizer_adds_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="accepted: from 2"):
        exact_words(tokenizer).make(random.Random(0), [1], Prefixes())


def test_token_ids_and_words() -> None:
    prompts = token_ids(11).make(random.Random(0), [5, 2000], Prefixes(3))
    assert [len(prompt) for prompt in prompts] == [8, 2003]
    assert set(prompts[1]) == set(range(11))
    assert prompts[0][:3] == prompts[1][:3]
    (words,) = plain_words().make(random.Random(0), [9], Prefixes())
    assert [len(word) for word in str(words).split(" ")] == [6] * 9


def test_shares_hang_up_and_are_malformed() -> None:
    plan = make_plan(random.Random(0), [0.0] * 4000, ["p"] * 4000, [10] * 4000, disconnect=0.2, malformed=0.05)
    left = [p.leave_after for p in plan if p.leave_after is not None]
    wrong = Counter(p.malformed for p in plan if p.malformed is not None)
    assert len(left) / 4000 == pytest.approx(0.2, abs=0.02)
    assert wrong.total() / 4000 == pytest.approx(0.05, abs=0.01)
    assert set(left) == set(range(10))
    for early in (0, 1):
        assert left.count(early) / len(left) == pytest.approx(1 / 3 + 1 / 30, abs=0.06)
    assert set(wrong) == set(KINDS)
    assert not any(p.malformed and p.leave_after is not None for p in plan)


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_bodies(api: str) -> None:
    target = Target("http://h:1/", "m", api, "key", {"temperature": 0}, ignore_eos=api == "chat")
    body = json.loads(target.body(Planned(0.0, "Hi", 5)))
    asked = {"prompt": "Hi"} if api == "completions" else {"messages": [{"role": "user", "content": "Hi"}]}
    extra = {"ignore_eos": True} if api == "chat" else {}
    fixed = {"model": "m", "max_tokens": 5, "stream": True, "stream_options": {"include_usage": True}}
    assert body == {**asked, **fixed, **extra, "temperature": 0}
    path = "/v1/completions" if api == "completions" else "/v1/chat/completions"
    assert (target.endpoint, target.headers["Authorization"]) == (f"http://h:1{path}", "Bearer key")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", ["prompt", "messages"])
def test_a_malformed_body_is_no_proper_one(kind: str, field: str) -> None:
    proper = {"model": "m", field: "x" if field == "prompt" else [{"role": "user", "content": "x"}], "max_tokens": 3}
    data = malform(proper, kind)
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return
    assert body != proper
    assert body != {**proper, "n": 1}


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_a_trace_says_lengths_prompts_and_times(tmp_path: Path) -> None:
    file = write(
        tmp_path / "t",
        {"timestamp": 500, "input_length": 3, "output_length": 2, "hash_ids": [1]},
        "",
        {"timestamp": 250.5, "prompt": "Hello", "output_length": 9},
        {"timestamp": 900, "prompt": [1, 2], "output_length": 1},
    )
    workload = Workload(
        count=2,
        input_len=LengthRange(1, 1),
        output_len=LengthRange(1, 1),
        arrivals=Arrivals(),
        trace=read_trace(file),
    )
    first, second = workload.plan(random.Random(0), token_ids(10))
    assert (first.at, first.prompt, first.output_len) == (0.2505, "Hello", 9)
    assert (second.at, len(second.prompt), second.output_len) == (0.5, 3, 2)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "is empty; accepted: a line of JSON"),
        (["{"], "line 1: "),
        (["[]"], "line 1: Expected `object`"),
        ([{"input_length": 3}], "line 1: Object missing required field `output_length`"),
        ([{"output_length": 3}], "line 1: accepted: a prompt, or an input_length"),
        ([{"output_length": 0, "input_length": 3}], "line 1: output_length=0; accepted: from 1"),
        ([{"output_length": 3, "input_length": -3}], "accepted: a prompt, or an input_length"),
        ([{"output_length": 3, "input_length": 3, "timestamp": -1}], "timestamp=-1.0; accepted: milliseconds"),
        ([{"output_length": 1, "input_length": 1}, {"output_length": 1, "input_length": 1, "timestamp": 1}], "or none"),
    ],
)
def test_a_wrong_trace_is_told_with_its_line(lines: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        read_trace(write(tmp_path / "t", *lines))


def test_no_trace(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the trace"):
        read_trace(tmp_path / "none")
    assert Recorded(1, 2).timestamp is None
