"""The bundled real model gives what transformers gives."""

from __future__ import annotations

import pytest
import torch

from helpers_models import PagedDriver
from helpers_smollm2 import PROMPTS, smollm2_path, transformers_smollm2
from octavo import LLM, SamplingParams
from octavo.kernels import for_device
from octavo.layers.build import Build
from octavo.models.loading import load_weights
from octavo.models.registry import build_model
from octavo.weights import open_checkpoint

pytestmark = pytest.mark.model

LENGTH = 64


@pytest.fixture(scope="module")
def llm():
    smollm2_path()
    with LLM("smollm2-135m", dtype="float32", kv_cache_memory=256 << 20, debug=True) as llm:
        yield llm


@pytest.fixture(scope="module")
def expected(llm) -> list[list[int]]:
    model = transformers_smollm2()
    prompts = [torch.tensor([llm.tokenizer.encode(prompt)]) for prompt in PROMPTS]
    options = {"max_new_tokens": LENGTH, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return [model.generate(ids, **options)[0, ids.shape[1] :].tolist() for ids in prompts]


def test_greedy_tokens_alone_and_in_one_batch(llm, expected):
    params = SamplingParams(temperature=0, max_tokens=LENGTH, ignore_eos=True)
    alone = [llm.generate([prompt], params, use_tqdm=False)[0] for prompt in PROMPTS]
    together = llm.generate(PROMPTS, params, use_tqdm=False)
    assert [o.outputs[0].token_ids for o in alone] == expected
    assert [o.outputs[0].token_ids for o in together] == expected


def test_logits_of_whole_sequences(llm, expected):
    model = transformers_smollm2()
    checkpoint = open_checkpoint(smollm2_path())
    own = build_model(checkpoint.config, Build(for_device("cpu")), 512)
    load_weights(own, checkpoint.tensors())
    prompts = [llm.tokenizer.encode(prompt) + tokens for prompt, tokens in zip(PROMPTS, expected, strict=True)]
    with torch.inference_mode():
        batch = PagedDriver(own, block_size=16).batch(dict(enumerate(prompts)))
        batch.attention = own.model.norm.ops.plan_attention(batch)
        logits = own.logits(own(batch)).split([len(prompt) for prompt in prompts])
        for prompt, found in zip(prompts, logits, strict=True):
            assert (found - model(torch.tensor([prompt])).logits[0]).abs().max() < 1e-3


def test_a_question_is_answered(llm):
    output = llm.chat(
        [{"role": "user", "content": "What is the capital of France?"}],
        SamplingParams(temperature=0, max_tokens=40),
        use_tqdm=False,
    )[0]
    completion = output.outputs[0]
    assert completion.text == "The capital of France is Paris."
    assert (completion.finish_reason, completion.stop_reason) == ("stop", None)
    assert completion.token_ids[-1] == llm.tokenizer.eos_token_id


def test_a_second_turn_finds_the_first_one_in_the_cache(llm):
    params = SamplingParams(temperature=0, max_tokens=40)
    history = [{"role": "user", "content": "What is the capital of Italy? Answer in a full sentence."}]
    answer = llm.chat(history, params, use_tqdm=False)[0].outputs[0].text
    history += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And of Spain?"}]
    output = llm.chat(history, params, use_tqdm=False)[0]
    assert output.metrics.num_cached_tokens >= 48


def test_streamed_pieces_are_the_whole_answer(llm):
    params = SamplingParams(temperature=0, max_tokens=48, stop=["7."], logprobs=1)
    whole = llm.generate(["Count: 1. 2. 3."], params, use_tqdm=False)[0].outputs[0]
    pieces = list(llm.stream("Count: 1. 2. 3.", params))
    assert "".join(piece.text for piece in pieces) == whole.text
    assert [t for piece in pieces for t in piece.token_ids] == whole.token_ids
    assert [e for piece in pieces for e in piece.logprobs] == whole.logprobs
    assert pieces[-1].finish_reason == whole.finish_reason
    assert all(piece.finish_reason is None for piece in pieces[:-1])
