"""Requests with LoRA adapters: PEFT's tokens, whatever the batch, the chunks, the cache, the places on the device."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from helpers_engine import Job, Workload, block_bytes, run_alone, run_together, tiny_llm
from helpers_lora import greedy, make_adapter
from helpers_models import make_tiny
from octavo import LLM, LoRARequest, SamplingParams
from octavo.core.plan import Waits
from octavo.errors import RequestError, UsageError

FAMILIES = ("llama", "qwen2", "qwen3", "gemma3", "phi3", "mixtral")
RANKS = (8, 3, 16)
GREEDY = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
PROMPTS = [[3, 17, 90, 4, 5, 6, 77, 8, 9, 10, 11, 12], [50], list(range(20, 60)), [3, 17, 90, 4, 5, 6, 77, 8, 9, 99]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("lora")


@pytest.fixture(scope="module")
def llama(folder) -> tuple[Path, list[LoRARequest], list[Any]]:
    """A model, three adapters of it, and PEFT's models of these."""
    return make(folder, "llama")


def make(folder: Path, name: str) -> tuple[Path, list[LoRARequest], list[Any]]:
    base, path = make_tiny(name, folder)
    made = [make_adapter(base, name, folder / f"{name}-{i}", i, r=rank) for i, rank in enumerate(RANKS)]
    return path, [LoRARequest(f"a{i}", i + 1, str(where)) for i, (_, where) in enumerate(made)], [m for m, _ in made]


def lora_llm(path: Path, **options: Any) -> LLM:
    return tiny_llm(path, **{"enable_lora": True, "block_size": 4, **options})


def tokens_of(outputs) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_tokens_are_those_of_peft(tmp_path, name):
    """Three adapters and none in one batch, of which two begin alike."""
    path, loras, theirs = make(tmp_path, name)
    with lora_llm(path) as llm:
        mixed = llm.generate(PROMPTS, GREEDY, use_tqdm=False, lora_request=[loras[0], loras[1], None, loras[2]])
        alone = llm.generate(PROMPTS[2], GREEDY, use_tqdm=False, lora_request=loras[2])
        plain = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    for i, model in ((0, theirs[0]), (1, theirs[1]), (3, theirs[2])):
        assert tokens_of(mixed)[i] == greedy(model, PROMPTS[i], 16)
    assert tokens_of(alone) == [greedy(theirs[2], PROMPTS[2], 16)]
    assert tokens_of(plain)[2] == tokens_of(mixed)[2]
    assert tokens_of(plain) != tokens_of(mixed)


def adapter_workload(seed: int) -> list[Job]:
    rng = random.Random(seed)
    jobs = Workload(seed).jobs
    for job in jobs:
        job.lora = rng.choice([None, "a0", "a1", "a2"])
    return jobs


@pytest.mark.parametrize("seed", range(5))
def test_any_schedule_gives_the_tokens_of_each_request_alone(llama, seed):
    """With fewer places than adapters, chunks, preemption, aborts, planning ahead; a second time with a warm cache."""
    path, loras, _ = llama
    rng = random.Random(seed)
    jobs, seqs, size = adapter_workload(seed + 40), rng.randint(1, 6), rng.choice([1, 2, 4, 8])
    longest = max(len(job.prompt) + job.params.max_tokens for job in jobs)
    settings = {
        "max_loras": rng.randint(1, 3),
        "block_size": size,
        "max_num_seqs": seqs,
        "max_num_batched_tokens": seqs + rng.randint(0, 12),
        "async_scheduling": rng.random() < 0.7,
        "enable_prefix_caching": rng.random() < 0.8,
    }
    with lora_llm(path, enable_prefix_caching=False) as alone, lora_llm(path) as probe:
        load(alone, loras)
        expected = [run_alone(alone, job) for job in jobs]
        memory = (-(-longest // size) + rng.randint(0, 6)) * block_bytes(probe) // 4 * size
    with lora_llm(path, kv_cache_memory=memory, **settings) as llm:
        load(llm, loras)
        for _ in range(2):
            for wanted, output in zip(expected, run_together(llm, jobs), strict=True):
                assert output is None or [c.token_ids for c in output.outputs] == wanted
        llm.engine.abort_all()
        llm.engine.scheduler.check()
        assert llm.engine.scheduler.pool.num_free == llm.engine.scheduler.pool.num_blocks


def load(llm: LLM, loras: list[LoRARequest]) -> None:
    for lora in loras:
        llm.engine.add_lora(lora.lora_name, lora.lora_path)


def test_more_adapters_than_places_take_turns(llama):
    path, loras, theirs = llama
    with lora_llm(path, max_loras=1) as llm:
        waits = []
        llm.engine.listeners.append(lambda plan, events: waits.extend(e.reason for e in events if isinstance(e, Waits)))
        outputs = llm.generate([PROMPTS[0]] * 3, GREEDY, use_tqdm=False, lora_request=loras)
    assert tokens_of(outputs) == [greedy(model, PROMPTS[0], 16) for model in theirs]
    assert "needs adapter 'a1', all 1 slots are in use" in waits
    assert outputs[2].metrics.waited_for == "needs adapter 'a2', all 1 slots are in use"


def test_the_cache_tells_adapters_apart(llama):
    """The same prompt again finds its blocks with the same adapter only, and a reloaded one finds none."""
    path, loras, theirs = llama
    prompt = PROMPTS[2]
    with lora_llm(path) as llm:

        def cached(lora: LoRARequest | None) -> int:
            [output] = llm.generate([prompt], GREEDY, use_tqdm=False, lora_request=lora)
            assert lora is None or tokens_of([output]) == [greedy(theirs[int(lora.lora_name[1])], prompt, 16)]
            return output.metrics.num_cached_tokens

        assert [cached(lora) for lora in (None, *loras)] == [0] * 4
        assert [cached(lora) for lora in (*loras, None)] == [36] * 4
        llm.engine.remove_lora("a0")
        assert cached(loras[0]) == 0


def test_all_verbs_take_an_adapter(llama):
    path, (lora, *_), (theirs, *_) = llama
    with lora_llm(path) as llm:
        pieces = list(llm.stream(PROMPTS[0], GREEDY, lora_request=lora))
        assert [t for piece in pieces for t in piece.token_ids] == greedy(theirs, PROMPTS[0], 16)
        vectors = llm.embed(PROMPTS[:2], use_tqdm=False, lora_request=[lora, None])
        both = llm.embed(PROMPTS[:2], use_tqdm=False)
    assert not np.allclose(vectors[0], both[0], atol=0.05)
    np.testing.assert_allclose(vectors[1], both[1], atol=1e-5)


def test_several_completions_have_the_same_adapter(llama):
    path, (lora, *_), (theirs, *_) = llama
    with lora_llm(path) as llm:
        [output] = llm.generate(
            [PROMPTS[0]],
            SamplingParams(n=3, temperature=0, max_tokens=6, ignore_eos=True),
            lora_request=lora,
            use_tqdm=False,
        )
    assert [c.token_ids for c in output.outputs] == [greedy(theirs, PROMPTS[0], 6)] * 3


@pytest.mark.filterwarnings("ignore:int4 does not fit")
@pytest.mark.parametrize("scheme", ["int8", "fp8", "int4"])
def test_quantized_weights_have_adapters_too(tmp_path, scheme):
    """The adapter's own part is not quantized: with and without it logits differ as in full precision."""
    base, path = make_tiny("llama-head-dim", tmp_path)
    _, where = make_adapter(base, "llama-head-dim", tmp_path / "adapter")
    lora, params = (
        LoRARequest("a", lora_path=str(where)),
        SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0),
    )
    found = {}
    for quantization in ("none", scheme):
        with lora_llm(path, quantization=quantization) as llm:
            for which in (None, lora):
                [output] = llm.generate([PROMPTS[2]], params, use_tqdm=False, lora_request=which)
                found[quantization, which is None] = np.array(
                    [p[t].logprob for p, t in zip(output.prompt_logprobs[1:], PROMPTS[2][1:], strict=True)]
                )
    error = np.abs(found[scheme, False] - found["none", False]).mean()
    assert error < 0.25 * np.abs(found["none", True] - found["none", False]).mean()


# ---------------------------------------------------------------- adapters come and go


def test_adapters_are_loaded_listed_and_removed(llama):
    path, loras, theirs = llama
    with lora_llm(path) as llm:
        info = llm.engine.add_lora("x", loras[1].lora_path)
        assert (info.name, info.path, info.rank) == ("x", loras[1].lora_path, 3)
        assert llm.engine.loras() == [info]
        request = llm.engine.add_request(PROMPTS[0], GREEDY, lora="x")
        llm.engine.step()
        llm.engine.remove_lora("x")  # who has it is finished first
        assert llm.engine.loras() == []
        llm.engine.add_lora("x", loras[2].lora_path)
        other = llm.engine.add_request(PROMPTS[0], GREEDY, lora="x")
        done = {}
        while llm.engine.has_unfinished_requests():
            done |= {output.request_id: output for output in llm.engine.step() if output.finished}
        assert tokens_of([done[request], done[other]]) == [greedy(model, PROMPTS[0], 16) for model in theirs[1:]]
        store = llm.engine._executor._runner.adapters
        assert len(store._loaded) == 1  # the removed one is gone


def test_a_request_that_waits_keeps_its_adapter(llama):
    """It is removed before it was ever on the device."""
    path, loras, theirs = llama
    with lora_llm(path, max_num_seqs=1) as llm:
        load(llm, loras[:1])
        llm.engine.add_request(PROMPTS[1], GREEDY)
        waiting = llm.engine.add_request(PROMPTS[0], GREEDY, lora="a0")
        llm.engine.step()
        llm.engine.remove_lora("a0")
        done = {}
        while llm.engine.has_unfinished_requests():
            done |= {output.request_id: output for output in llm.engine.step()}
        assert tokens_of([done[waiting]]) == [greedy(theirs[0], PROMPTS[0], 16)]
        assert not llm.engine._executor._runner.adapters._loaded


def test_an_adapter_that_is_removed_while_its_step_is_on_its_way(llama):
    path, loras, _ = llama
    with lora_llm(path, async_scheduling=True) as llm:
        load(llm, loras[:1])
        request = llm.engine.add_request(PROMPTS[2], GREEDY, lora="a0")
        llm.engine._launch()
        llm.engine.abort(request)
        llm.engine.remove_lora("a0")
        outputs = llm.generate([PROMPTS[0]], GREEDY, use_tqdm=False)
        assert outputs[0].finished
        assert not llm.engine._executor._runner.adapters._loaded


def test_too_many_are_refused_and_requests_replace_idle_ones(llama):
    path, loras, theirs = llama
    with lora_llm(path, max_loras=1, max_cpu_loras=2) as llm:
        load(llm, loras[:2])
        with pytest.raises(RequestError, match="max_cpu_loras=2 adapters are loaded"):
            llm.engine.add_lora("a2", loras[2].lora_path)
        with pytest.raises(RequestError, match="is not a folder"):  # one that cannot be loaded replaces nothing
            llm.generate([PROMPTS[1]], GREEDY, use_tqdm=False, lora_request=LoRARequest("a2", 3, "/nowhere"))
        assert [info.name for info in llm.engine.loras()] == ["a0", "a1"]
        llm.generate([PROMPTS[1]], GREEDY, use_tqdm=False, lora_request=loras[0])
        outputs = llm.generate([PROMPTS[0]], GREEDY, use_tqdm=False, lora_request=loras[2])
        assert tokens_of(outputs) == [greedy(theirs[2], PROMPTS[0], 16)]
        assert [info.name for info in llm.engine.loras()] == ["a0", "a2"]  # a1 was asked for longest ago
        with pytest.raises(RequestError, match="prompt 2: max_cpu_loras=2 adapters are loaded or still in use"):
            llm.generate([PROMPTS[0]] * 3, GREEDY, use_tqdm=False, lora_request=loras)
        assert not llm.engine.has_unfinished_requests()


def test_an_adapter_that_does_not_fit_into_memory_is_refused(llama, monkeypatch):
    path, loras, _ = llama
    with lora_llm(path) as llm:
        with monkeypatch.context() as patch:
            patch.setattr("torch.zeros", Mock(side_effect=RuntimeError("can't allocate memory\nException raised from")))
            with pytest.raises(RequestError, match=r"does not fit into the host.s memory: can.t allocate memory$"):
                llm.engine.add_lora("a0", loras[0].lora_path)
        assert llm.engine.loras() == []
        load(llm, loras[:1])


def test_a_lost_device_forgets_nothing_that_is_loaded(llama, monkeypatch):
    path, (lora, *_), (theirs, *_) = llama
    with lora_llm(path) as llm:
        load(llm, [lora])
        with monkeypatch.context() as patch:
            patch.setattr(llm.engine._executor._runner.model, "forward", lambda batch: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                llm.generate([PROMPTS[0]], GREEDY, use_tqdm=False, lora_request=lora)
        assert tokens_of(llm.generate([PROMPTS[0]], GREEDY, use_tqdm=False, lora_request=lora)) == [
            greedy(theirs, PROMPTS[0], 16)
        ]


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_loras": 0}, "max_loras=0; accepted: a positive whole number up to 256"),
        ({"max_lora_rank": 513}, "max_lora_rank=513; accepted: a positive whole number up to 512"),
        ({"max_cpu_loras": "many"}, "max_cpu_loras='many'; accepted: a positive whole number or None"),
        ({"max_cpu_loras": 3}, "max_cpu_loras=3 is less than max_loras=4"),
        ({"enable_lora": "yes"}, "enable_lora='yes' is not supported"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        LLM("anything", **{"enable_lora": True, **options})


def test_bad_requests_are_refused_in_one_line(llama):
    path, (lora, *_), _ = llama
    with lora_llm(path, max_lora_rank=4) as llm:
        for wrong, message in (
            ("a0", "lora_request='a0'; accepted: a LoRARequest"),
            ([lora], "1 lora_requests for 2 prompts"),
            (LoRARequest("b"), "prompt 0: there is no LoRA adapter 'b'; loaded: none"),
            (lora, "prompt 0: .*has rank 8 in .*; at most max_lora_rank=4 is accepted"),
            (LoRARequest("c", lora_path="/nowhere"), "prompt 0: /nowhere is not a folder"),
        ):
            with pytest.raises(RequestError, match=message) as error:
                llm.generate([[5], [6]], GREEDY, use_tqdm=False, lora_request=wrong)
            assert "\n" not in str(error.value)
        assert not llm.engine.loras()
        assert not llm.engine.has_unfinished_requests()
        with pytest.raises(RequestError, match="there is no LoRA adapter 'x'"):
            llm.engine.remove_lora("x")
    for name in ("", "a\nb", 5):
        with pytest.raises(RequestError, match=r"the name of a LoRA adapter is .*; accepted: a text"):
            LoRARequest(name)


def test_one_name_is_one_adapter(llama):
    path, loras, _ = llama
    with lora_llm(path) as llm:
        load(llm, loras[:1])
        for where in (loras[0].lora_path, loras[1].lora_path):
            with pytest.raises(RequestError, match="there is a LoRA adapter 'a0' already"):
                llm.engine.add_lora("a0", where)
        with pytest.raises(RequestError, match="there is a LoRA adapter 'a0' already"):
            llm.generate([[5]], GREEDY, use_tqdm=False, lora_request=LoRARequest("a0", 1, loras[1].lora_path))


def test_an_engine_without_adapters_says_so(llama):
    path, (lora, *_), _ = llama
    with tiny_llm(path) as llm, pytest.raises(RequestError, match="accepted with enable_lora=True"):
        llm.generate([[5]], GREEDY, use_tqdm=False, lora_request=lora)


def test_the_ledger_counts_the_places(llama):
    path, *_ = llama
    with tiny_llm(path) as without, lora_llm(path, max_loras=2, max_lora_rank=8) as with_loras:
        assert with_loras.engine.ledger.weights == without.engine.ledger.weights
        more = with_loras.engine.ledger.adapters
        assert without.engine.ledger.adapters == 0
        assert "LoRA adapters" in with_loras.engine.ledger.describe()
        assert "LoRA adapters" not in without.engine.ledger.describe()
    hidden, inner, kv = 48, 84, 16
    a = 3 * hidden + hidden + 2 * hidden + inner  # inputs of qkv, o, gate-up, down for each row of A
    b = (hidden + 2 * kv) + hidden + 2 * inner + hidden
    assert more == 3 * 2 * (8 * 4 * (a + b) + 4 * (3 + 1 + 2 + 1))
