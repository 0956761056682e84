"""Perplexity against transformers, and windows that score each token once."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from helpers_cli import make_chat_model
from helpers_smollm2 import smollm2_path, transformers_smollm2
from octavo import LLM
from octavo.cli.evaluate import evaluate
from octavo.errors import RequestError, UsageError
from octavo.evaluate.perplexity import Window, _scored, measure, plan_windows
from octavo.sampling_params import SamplingParams

TEXT = "A printer takes one large sheet and prints sixteen pages on it, eight on each side. Ça va? 1, 2, 3. " * 3


@given(st.integers(2, 200), st.integers(2, 64), st.data())
def test_each_token_but_the_first_is_scored_once(length: int, context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context))
    windows = plan_windows(length, context, stride)
    scored = [i for w in windows for i in range(max(w.first, w.begin + 1), w.end)]
    assert scored == list(range(1, length))
    assert all(window.end - window.begin <= context for window in windows)
    least = min(context - stride, 1)
    assert all(window.first - window.begin >= least for window in windows[1:])


@pytest.mark.parametrize(("length", "context", "stride"), [(1, 8, 4), (0, 8, 4), (20, 1, 1), (20, 8, 9), (20, 8, 0)])
def test_windows_that_are_not_possible(length: int, context: int, stride: int) -> None:
    with pytest.raises(UsageError):
        plan_windows(length, context, stride)


def by_transformers(model: Any, ids: list[int], context: int, stride: int) -> float:
    """The usual loop over windows: labels of what an earlier window has scored are left out."""
    total, count, previous = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + context, len(ids))
        window = torch.tensor([ids[begin:end]])
        with torch.inference_mode():
            logprobs = model(window).logits[0, :-1].float().log_softmax(-1)
        own = logprobs.gather(1, window[0, 1:, None])[:, 0][max(previous - begin - 1, 0) :]
        total, count, previous = total - float(own.double().sum()), count + len(own), end
        if end == len(ids):
            break
    return math.exp(total / count)


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("evaluate") / "model")


@pytest.mark.parametrize(("context", "stride"), [(16, 8), (16, 15), (33, 1), (4096, 4096)])
def test_equal_to_transformers(chat_model: Path, context: int, stride: int) -> None:
    oracle = AutoModelForCausalLM.from_pretrained(chat_model, attn_implementation="eager")
    seen: list[tuple[int, int]] = []
    with LLM(str(chat_model), kv_cache_memory=8 << 20, max_num_seqs=4) as llm:
        ids = llm.encode(TEXT)
        found = measure(llm.engine, TEXT, context=context, stride=stride, on_progress=lambda *at: seen.append(at))
    assert found.perplexity == pytest.approx(by_transformers(oracle, ids, context, stride), rel=1e-5)
    assert found.tokens == len(ids) - 1
    assert found.bits_per_byte == pytest.approx(found.nats_per_token * found.tokens / math.log(2) / len(TEXT.encode()))
    assert seen[-1] == (len(ids) - 1, len(ids) - 1)
    assert len(seen) == found.windows


def test_a_part_of_a_text(chat_model: Path) -> None:
    with LLM(str(chat_model), kv_cache_memory=8 << 20) as llm:
        found = measure(llm.engine, TEXT, limit=50)
        size = len(llm.tokenizer.decode(llm.encode(TEXT)[:50]).encode())
        assert (found.tokens, found.bytes) == (49, size)
        with pytest.raises(UsageError, match="accepted: up to"):
            measure(llm.engine, TEXT, context=100_000)
        assert not llm.engine.has_unfinished_requests()


def test_a_nan_is_an_error(chat_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a text's log-probabilities alone: what the sampler sees is sound, so that the request ends well."""
    with LLM(str(chat_model), kv_cache_memory=8 << 20) as llm:
        outputs = llm.generate(["one two three"], SamplingParams(max_tokens=1, prompt_logprobs=0))
    entry = outputs[0].prompt_logprobs[1]
    token = outputs[0].prompt_token_ids[1]
    entry[token] = replace(entry[token], logprob=math.nan)
    with pytest.raises(RequestError, match="not a number"):
        _scored(outputs[0], Window(0, len(outputs[0].prompt_token_ids), 1))


def test_interrupted_between_steps(chat_model: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with LLM(str(chat_model), kv_cache_memory=8 << 20) as llm:
        with pytest.raises(KeyboardInterrupt):
            measure(llm.engine, TEXT, context=16, check=interrupt)
        assert not llm.engine.has_unfinished_requests()


def test_command(chat_model: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text(TEXT)
    arguments = ["perplexity", str(chat_model), str(tmp_path / "text"), "--context", "32", "--kv-cache-memory", "8M"]
    result = CliRunner().invoke(evaluate, [*arguments, "--json"])
    assert result.exit_code == 0, result.exception
    report = json.loads(result.stdout)
    assert (report["context"], report["stride"]) == (32, 16)
    lines = CliRunner().invoke(evaluate, arguments).stdout.splitlines()
    assert lines[0].split() == ["perplexity", f"{report['perplexity']:.4f}"]
    assert isinstance(CliRunner().invoke(evaluate, [*arguments, "--stride", "33"]).exception, UsageError)
    missing = CliRunner().invoke(evaluate, ["perplexity", str(chat_model), str(tmp_path / "no")])
    assert isinstance(missing.exception, UsageError)


@pytest.mark.model
def test_smollm2_in_float32() -> None:
    with LLM(str(smollm2_path()), dtype="float32", quantization="none", max_model_len=256, max_num_seqs=4) as llm:
        ids = llm.encode(TEXT)
        found = measure(llm.engine, TEXT, context=64, stride=32)
    assert found.perplexity == pytest.approx(by_transformers(transformers_smollm2(), ids, 64, 32), rel=1e-4)
