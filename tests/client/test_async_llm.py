"""``AsyncLLM`` gives what ``LLM`` gives."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from helpers_cli import make_chat_adapter, make_chat_model
from octavo import LLM, AsyncLLM, ModelError, RequestError, SamplingParams, UsageError
from octavo.text.tokenizer import load_tokenizer

OPTIONS: dict[str, Any] = {"kv_cache_memory": 8 << 20, "block_size": 4}
TALK = [{"role": "user", "content": "Hi"}]
GREEDY = SamplingParams(temperature=0, max_tokens=10, logprobs=1)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("chat"))


def test_its_verbs_are_those_of_llm(path: Path) -> None:
    two = SamplingParams(temperature=1, seed=3, n=2, max_tokens=8, prompt_logprobs=0)
    with LLM(str(path), **OPTIONS) as llm:
        plain = llm.generate("Once", GREEDY, use_tqdm=False)[0]
        several = llm.generate([[5, 6, 7]], two, use_tqdm=False)[0]
        answer = llm.chat(TALK, GREEDY, use_tqdm=False)[0]
        pieces = [piece.text for piece in llm.stream(TALK, GREEDY)]
        vector = llm.embed("Once", use_tqdm=False)[0]

    async def run() -> None:
        async with AsyncLLM(str(path), **OPTIONS) as other:
            outputs = [output async for output in other.generate("Once", GREEDY)]
            assert outputs[0] is outputs[-1], "the same output, grown"
            same(outputs[-1], plain)
            same([output async for output in other.generate({"prompt_token_ids": [5, 6, 7]}, two)][-1], several)
            same([output async for output in other.chat(TALK, GREEDY)][-1], answer)
            assert "".join([piece.text async for piece in other.stream(TALK, GREEDY)]) == "".join(pieces)
            np.testing.assert_allclose(await other.embed("Once"), vector, atol=1e-5)

    asyncio.run(asyncio.wait_for(run(), 60))


def same(output: Any, expected: Any) -> None:
    assert output.prompt_token_ids == expected.prompt_token_ids
    for ours, theirs in zip(output.outputs, expected.outputs, strict=True):
        assert (ours.index, ours.text, ours.token_ids) == (theirs.index, theirs.text, theirs.token_ids)
        assert (ours.finish_reason, ours.stop_reason) == (theirs.finish_reason, theirs.stop_reason)
        assert [list(entry) for entry in ours.logprobs or []] == [list(entry) for entry in theirs.logprobs or []]
    assert [entry and list(entry) for entry in output.prompt_logprobs or []] == [
        entry and list(entry) for entry in expected.prompt_logprobs or []
    ]
    assert output.finished


def test_requests_run_together_and_end_early(path: Path) -> None:
    long = SamplingParams(temperature=0, max_tokens=2000)

    async def run() -> None:
        llm = AsyncLLM(str(path), **OPTIONS)
        engine = await llm.start()
        async for output in llm.generate([5], long, "mine"):
            if len(output.outputs[0].token_ids) > 3 and not output.finished:
                assert await llm.abort("mine")
        assert output.outputs[0].finish_reason == "abort"
        texts = await asyncio.gather(*(last(llm, f"Tell {i}") for i in range(5)))
        assert texts == [await last(llm, f"Tell {i}") for i in range(5)]
        async for _ in llm.generate([5], long):
            break
        with pytest.raises(RequestError, match="accepted: text, or a list of token ids"):
            await anext(llm.generate(7))  # type: ignore[arg-type]
        with pytest.raises(RequestError, match="deadline"):
            await llm.embed([5], timeout=1e-9)
        await llm.shutdown()
        assert not psutil.pid_exists(engine.pid)

    asyncio.run(asyncio.wait_for(run(), 60))


async def last(llm: AsyncLLM, prompt: str) -> str:
    async for output in llm.generate(prompt, GREEDY):
        text = output.outputs[0].text
    return text


def test_what_came_before_a_refusal_is_told_first(path: Path) -> None:
    (seven,) = load_tokenizer(path).encode("7", add_special_tokens=False)
    bans = SamplingParams(max_tokens=60, allowed_token_ids=[seven], bad_words=["7" * 40], n=2)

    async def run() -> None:
        async with AsyncLLM(str(path), **OPTIONS) as llm:
            expected = await last(llm, "Once")
            outputs = llm.generate([5], bans)
            assert set((await anext(outputs)).outputs[0].token_ids) == {seven}
            with pytest.raises(RequestError, match="allowed_token_ids, bad_words: every token is banned"):
                _ = [output async for output in outputs]
            assert await last(llm, "Once") == expected

    asyncio.run(asyncio.wait_for(run(), 60))


def test_adapters_come_and_go(path: Path, tmp_path: Path) -> None:
    adapter = str(make_chat_adapter(tmp_path / "adapter"))

    async def run() -> None:
        async with AsyncLLM(str(path), **OPTIONS, enable_lora=True) as llm:
            info = await llm.add_lora("a", adapter)
            assert list(await llm.loras()) == [info]
            assert [output async for output in llm.generate([5, 6], GREEDY, lora="a")][-1].finished
            await llm.remove_lora("a")
            assert list(await llm.loras()) == []
            with pytest.raises(RequestError, match="no LoRA adapter 'a'"):
                await anext(llm.generate([5, 6], GREEDY, lora="a"))

    asyncio.run(asyncio.wait_for(run(), 60))


def test_mistakes_are_told_as_llm_tells_them(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'max_num_seqs'"):
        AsyncLLM("x", max_num_seq=3)

    async def run() -> None:
        with pytest.raises(ModelError, match="no such file or folder"):
            async with AsyncLLM(str(tmp_path / "nothing")):
                pass

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_tokenizer_that_cannot_be_read_leaves_no_process(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise ModelError("damaged since")

    monkeypatch.setattr("octavo.async_llm.load_tokenizer", fail)

    async def run() -> None:
        llm = AsyncLLM(str(path), **OPTIONS)
        before = set(psutil.Process().children())  # templates have a process of their own
        with pytest.raises(ModelError, match="damaged since"):
            await llm.start()
        assert set(psutil.Process().children()) <= before
        await llm.shutdown()

    asyncio.run(asyncio.wait_for(run(), 60))


def test_one_that_was_never_used_has_nothing_to_end() -> None:
    asyncio.run(AsyncLLM("x").shutdown())
