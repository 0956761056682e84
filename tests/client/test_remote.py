"""An engine in another process gives what one in this process gives; and it refuses, ends and counts what it should."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from helpers_cli import make_chat_adapter, make_chat_model
from helpers_engine import Job, Workload, run_alone, tiny_llm
from helpers_models import VOCAB, make_tiny
from helpers_remote import joined_tokens, read_all, start, tokens_of, until_idle
from octavo import LLM, LoRARequest, ModelError, RequestError, SamplingParams
from octavo.client.remote import RemoteEngine
from octavo.client.verbs import BusyError, EngineDeadError
from octavo.client.wire import Limits
from octavo.config import EngineConfig

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=240, ignore_eos=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("tiny"))[1]


@pytest.fixture(scope="module")
def plain(path: Path) -> Iterator[LLM]:
    with tiny_llm(path, enable_prefix_caching=False) as llm:
        yield llm


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def engine(path: Path, loop: asyncio.Runner) -> Iterator[RemoteEngine]:
    engine = loop.run(start(path, block_size=4, max_num_seqs=8, max_num_batched_tokens=32))
    yield engine
    loop.run(engine.shutdown(0))


def within(seconds: float, coroutine: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
    return asyncio.wait_for(coroutine, seconds)


# ---------------------------------------------------------------- the same tokens


async def run_job(engine: RemoteEngine, job: Job, name: str, rng: random.Random) -> list[list[int]] | None:
    """Its tokens; None if it was aborted or left, which happens at any moment."""
    await asyncio.sleep(job.arrives * 0.002)
    outputs = []
    stream = engine.generate(job.prompt, job.params, request_id=name)
    left = None if job.aborted is None else rng.randrange(job.aborted)
    aborts = rng.random() < 0.5
    async for output in stream:
        outputs.append(output)
        if left is not None and len(outputs) > left and not output.finished:
            if not aborts:
                await stream.aclose()
                return None
            await engine.abort(name)
    ended_early = any(c.finish_reason == "abort" for output in outputs for c in output.outputs)
    return None if ended_early else joined_tokens(outputs)


@pytest.mark.parametrize("seed", range(6))
def test_random_workloads_give_the_tokens_of_each_request_alone(loop, engine, plain, seed):
    rng = random.Random(seed)
    jobs = [job for part in range(4) for job in Workload(seed * 10 + part).jobs]

    async def run() -> list[list[list[int]] | None]:
        return await asyncio.gather(*(run_job(engine, job, f"{seed}-{i}", rng) for i, job in enumerate(jobs)))

    results = loop.run(within(60, run()))
    assert sum(result is not None for result in results) > len(jobs) / 2
    for job, tokens in zip(jobs, results, strict=True):
        if tokens is not None:
            assert tokens == run_alone(plain, job)
    counts = loop.run(until_idle(engine))
    assert counts["free_blocks"] == counts["num_blocks"]


def test_logprobs_scores_and_metrics_arrive(loop, engine, plain):
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, logprobs=2, prompt_logprobs=1)
    prompt = list(range(3, 43))
    expected = plain.generate([prompt], params, use_tqdm=False)[0]
    outputs = loop.run(read_all(engine, prompt, params))
    scores = [output.prompt_logprobs for output in outputs if output.prompt_logprobs is not None]
    assert len(scores) == 1
    assert scores[0][0] is None
    assert [list(entry) for entry in scores[0][1:]] == [list(entry) for entry in expected.prompt_logprobs[1:]]
    logprobs = [entry for output in outputs for piece in output.outputs for entry in piece.logprobs]
    assert [list(entry) for entry in logprobs] == [list(entry) for entry in expected.outputs[0].logprobs]
    last = outputs[-1]
    assert last.finished
    assert last.outputs[0].cumulative_logprob == pytest.approx(expected.outputs[0].cumulative_logprob, abs=1e-4)
    assert last.metrics.first_token_time - last.metrics.arrival_time >= 0
    assert last.metrics.num_blocks >= 11
    assert last.prompt_token_ids == prompt


def test_embeddings(loop, engine, plain):
    vector = loop.run(engine.embed([3, 4, 5], request_id="e")).embedding
    np.testing.assert_allclose(np.asarray(vector), plain.embed([[3, 4, 5]], use_tqdm=False)[0], atol=1e-5)


def test_text_is_the_same_as_in_this_process(tmp_path, loop):
    path = make_chat_model(tmp_path / "chat")
    params = SamplingParams(temperature=0, max_tokens=12, stop=["q"])
    with LLM(str(path), kv_cache_memory=8 << 20) as llm:
        expected = llm.generate("Once, caf\u00e9", params, use_tqdm=False)[0]

    async def run() -> None:
        engine = await RemoteEngine.start(EngineConfig.from_kwargs(str(path), kv_cache_memory=8 << 20))
        outputs = await read_all(engine, "Once, caf\u00e9", params)
        assert "".join(piece.text for output in outputs for piece in output.outputs) == expected.outputs[0].text
        assert (outputs[0].prompt, outputs[0].prompt_token_ids) == (expected.prompt, expected.prompt_token_ids)
        assert outputs[-1].outputs[0].stop_reason == expected.outputs[0].stop_reason
        assert engine.info.tokenizer_path == str(path)
        await engine.shutdown(0)

    loop.run(within(60, run()))


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "prompt is empty"),
        ([VOCAB], {}, f"whole numbers from 0 to {VOCAB - 1}"),
        ([1.5], {}, "token id 1.5"),
        ([True], {}, "token id True"),
        ([3] * 300, {}, "at most 255 are accepted"),
        ("text", {}, "without a tokenizer"),
        ([3], {"stop_token_ids": [VOCAB]}, "stop_token_ids"),
        ([3], {"lora": "x"}, "started without LoRA adapters"),
        ([3], {"cache_salt": "\ud800"}, "cannot be sent"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused(loop, engine, prompt, options, message):
    params = SamplingParams(max_tokens=2, stop_token_ids=options.pop("stop_token_ids", []))
    with pytest.raises(RequestError, match=message):
        loop.run(within(10, read_all(engine, prompt, params, **options)))
    assert loop.run(engine.debug_check())["unfinished"] == 0


def test_a_vector_that_takes_too_long_is_none_and_says_why(loop, engine):
    output = loop.run(within(20, engine.embed([3, 4, 5], request_id="late", timeout=1e-9)))
    assert (output.finished, output.embedding) == (True, None)
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("abort", "deadline")


def test_an_id_is_taken_while_its_request_runs(loop, engine):
    async def run() -> None:
        first = engine.generate([3], LONG, request_id="twin")
        await anext(first)
        with pytest.raises(RequestError, match="unfinished request 'twin'"):
            await anext(engine.generate([3], LONG, request_id="twin"))
        await first.aclose()
        assert await tokens_of(engine, [3], GREEDY)
        assert await read_all(engine, [3], GREEDY, request_id="twin")

    loop.run(within(20, run()))


def test_adapters_are_refused_in_one_line(loop, engine):
    with pytest.raises(RequestError, match="started without LoRA adapters"):
        loop.run(engine.add_lora("a", "/nowhere"))
    assert list(engine.loras()) == []


def test_the_queue_is_bounded(path, loop):
    async def run() -> None:
        engine = await start(path, Limits(max_queue=2), max_num_seqs=2, max_num_batched_tokens=64)
        streams = [engine.generate([3 + i], LONG, request_id=str(i)) for i in range(7)]
        first = await asyncio.gather(*(anext(stream) for stream in streams[:2]))
        assert len(first) == 2
        results = await asyncio.gather(*(read_all(engine, [9], GREEDY) for _ in range(5)), return_exceptions=True)
        busy = [result for result in results if isinstance(result, BusyError)]
        assert len(busy) == 3
        assert all(1 <= error.retry_after <= 60 for error in busy)
        assert len([result for result in results if isinstance(result, list)]) == 2
        await engine.shutdown(0)

    loop.run(within(60, run()))


def test_adapters_are_loaded_used_and_removed(tmp_path, loop):
    path = make_chat_model(tmp_path / "chat")
    adapter = str(make_chat_adapter(tmp_path / "adapter"))
    options = {"kv_cache_memory": 8 << 20, "enable_lora": True, "max_loras": 2}
    with LLM(str(path), **options) as llm:
        plain = llm.generate([[5, 6]], GREEDY, use_tqdm=False)[0].outputs[0].token_ids
        llm.engine.add_lora("a", adapter)
        adapted = llm.generate([[5, 6]], GREEDY, use_tqdm=False, lora_request=LoRARequest("a"))[0].outputs[0].token_ids
        vectors = [llm.embed([[5, 6]], use_tqdm=False, lora_request=lora)[0] for lora in (None, LoRARequest("a"))]
    assert adapted != plain
    assert not np.allclose(*vectors)

    async def run() -> None:
        engine = await RemoteEngine.start(EngineConfig.from_kwargs(str(path), **options))
        assert engine.info.max_loras == 2
        info = await engine.add_lora("a", adapter)
        assert (info.name, info.path, list(engine.loras())) == ("a", adapter, [info])
        with pytest.raises(RequestError, match="'a' already"):
            await engine.add_lora("a", adapter)
        outputs = await asyncio.gather(*(read_all(engine, [5, 6], GREEDY, lora=lora) for lora in (None, "a", None)))
        assert [joined_tokens(output)[0] for output in outputs] == [plain, adapted, plain]
        for lora, vector in zip((None, "a"), vectors, strict=True):
            output = await engine.embed([5, 6], request_id="vector", lora=lora)
            np.testing.assert_allclose(output.embedding, vector, rtol=1e-5, atol=1e-6)
        await engine.remove_lora("a")
        assert list(engine.loras()) == []
        with pytest.raises(RequestError, match="no LoRA adapter 'a'"):
            await read_all(engine, [5, 6], GREEDY, lora="a")
        await engine.shutdown(0)

    loop.run(within(60, run()))


# ---------------------------------------------------------------- ends


def test_an_abort_gives_a_last_output(loop, engine):
    async def run() -> None:
        stream = engine.generate([3, 4], LONG, request_id="a")
        await anext(stream)
        assert await engine.abort("a")
        rest = [output async for output in stream]
        assert (rest[-1].finished, rest[-1].outputs[0].finish_reason) == (True, "abort")
        assert not await engine.abort("a")
        assert not await engine.abort("never")

    loop.run(within(20, run()))


def test_leaving_a_stream_aborts_it(loop, engine):
    async def run() -> None:
        async for _ in engine.generate([3, 4], LONG, request_id="left"):
            break
        task = asyncio.create_task(read_all(engine, [3, 5], LONG, request_id="cancelled"))
        await asyncio.sleep(0.02)
        task.cancel()
        counts = await until_idle(engine)
        assert counts["free_blocks"] == counts["num_blocks"]

    before = loop.run(tokens_of(engine, [3], GREEDY)) and engine.load().generated_tokens
    loop.run(within(20, run()))
    assert engine.load().generated_tokens - before < 400


def test_a_deadline_ends_a_request_wherever_it_is(loop, engine):
    async def run() -> None:
        running = await read_all(engine, [3], LONG, timeout=0.05)
        assert (running[-1].outputs[0].finish_reason, running[-1].outputs[0].stop_reason) == ("abort", "deadline")
        late = await read_all(engine, [3], LONG, timeout=0.0)
        assert (late[-1].outputs[0].token_ids, late[-1].outputs[0].stop_reason) == ([], "deadline")
        assert (await read_all(engine, [3], GREEDY, timeout=60))[-1].outputs[0].finish_reason == "length"

    loop.run(within(20, run()))


def test_counters_grow_by_what_was_done(loop, engine):
    async def run() -> None:
        await engine.reset_prefix_cache()
        before = engine.load()
        await read_all(engine, list(range(3, 36)), GREEDY)
        await read_all(engine, list(range(3, 36)), GREEDY)
        await engine.debug_check()
        after = engine.load()
        assert after.prompt_tokens - before.prompt_tokens == 66
        assert after.cached_tokens - before.cached_tokens == 32
        assert after.generated_tokens - before.generated_tokens == 12
        assert after.finished["length"] - before.finished.get("length", 0) == 2
        assert after.steps - before.steps >= 12
        assert (after.running, after.waiting, after.waiting_tokens, after.blocks_used) == (0, 0, 0, 0)
        at = after.at
        async with asyncio.timeout(3):
            while engine.load().at <= at:  # also when nothing happens
                await asyncio.sleep(0.05)

    loop.run(within(20, run()))


def test_a_thousand_streams_are_held(path, loop):
    async def run() -> None:
        engine = await start(path, max_num_seqs=128, max_num_batched_tokens=512, debug=False)
        params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
        prompts = [[3 + i % 100, 3 + i // 100] for i in range(1000)]
        results = await asyncio.gather(*(tokens_of(engine, prompt, params) for prompt in prompts))
        again = await asyncio.gather(*(tokens_of(engine, prompt, params) for prompt in prompts[::97]))
        assert [len(tokens[0]) for tokens in results] == [4] * 1000
        assert results[::97] == list(again)
        counts = await until_idle(engine)
        assert counts["free_blocks"] == counts["num_blocks"]
        await engine.shutdown(0)

    loop.run(within(60, run()))


@pytest.mark.slow
def test_ten_thousand_requests_with_disconnects_leave_nothing_behind(path, loop):
    """None is lost, no block leaks, and the engine's memory is flat: one in five is left early, one in twenty wrong."""
    rng = random.Random(0)

    async def one(engine: RemoteEngine, gate: asyncio.Semaphore) -> str:
        prompt = [rng.randrange(3, VOCAB) for _ in range(rng.randint(1, 24))] if rng.random() > 0.05 else [VOCAB]
        params = SamplingParams(temperature=0, max_tokens=rng.randint(1, 8), ignore_eos=True)
        leaves, finished = rng.random() < 0.2, False
        stream = engine.generate(prompt, params, request_id=str(rng.getrandbits(64)))
        try:
            async with gate, contextlib.aclosing(stream) as outputs:
                async for output in outputs:
                    finished = output.finished
                    if leaves:
                        return "left"
        except RequestError:
            return "refused"
        return "finished" if finished else "lost"

    async def run() -> None:
        engine = await start(path, max_num_seqs=64, max_num_batched_tokens=512, block_size=4, debug=False)
        gate, memory, seen = asyncio.Semaphore(200), [], Counter()
        for _ in range(10):
            seen += Counter(await asyncio.gather(*(one(engine, gate) for _ in range(1000))))
            memory.append(psutil.Process(engine.pid).memory_info().rss)
        assert set(seen) == {"finished", "left", "refused"}, seen
        counts = await until_idle(engine)
        assert counts["free_blocks"] == counts["num_blocks"]
        assert memory[-1] < 1.05 * memory[5], memory
        await engine.shutdown(0)

    loop.run(within(500, run()))


def test_shutdown_drains_and_then_aborts(path, loop):
    async def run() -> None:
        engine = await start(path)
        await read_all(engine, [3], GREEDY)  # the first step takes longest
        short = asyncio.create_task(read_all(engine, [3], SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)))
        long = asyncio.create_task(read_all(engine, [4], LONG))
        await asyncio.sleep(0.05)
        ending = asyncio.create_task(engine.shutdown(0.15))
        await asyncio.sleep(0.01)
        with pytest.raises((BusyError, EngineDeadError)):
            await read_all(engine, [5], GREEDY)
        await ending
        assert (await short)[-1].outputs[0].finish_reason == "length"
        assert (await long)[-1].outputs[0].finish_reason in ("abort", "length")
        with pytest.raises(EngineDeadError, match="shut down"):
            await read_all(engine, [5], GREEDY)
        await engine.shutdown(1)

    loop.run(within(60, run()))


def test_a_model_that_is_not_there_is_the_same_error_as_in_this_process(tmp_path, loop):
    with pytest.raises(ModelError, match="no such file or folder"):
        loop.run(within(60, RemoteEngine.start(EngineConfig.from_kwargs(str(tmp_path / "nothing")))))
