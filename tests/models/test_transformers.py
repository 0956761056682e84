"""Every family against transformers: the same logits however the tokens are cut into steps and batched."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers_models import PHI3, TINY, VOCAB, PagedDriver, load_tiny, longrope, make_tiny

PROMPT = torch.randint(0, VOCAB, (40,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.fixture(scope="module", params=TINY)
def pair(request, tmp_path_factory):
    """(transformers' model, Octavo's) with the same weights."""
    theirs, path = make_tiny(request.param, tmp_path_factory.mktemp("tiny"))
    return theirs, load_tiny(path)


@torch.inference_mode()
def expected(theirs, tokens):
    return theirs(torch.tensor([tokens])).logits[0].float()


def close(actual, wanted, tolerance=1e-4):
    torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=tolerance)


def test_whole_prompt(pair):
    theirs, ours = pair
    logits = PagedDriver(ours).step({0: PROMPT})[0]
    assert logits.dtype == torch.float32
    assert expected(theirs, PROMPT).std() > 0.1  # otherwise the comparison would say nothing
    close(logits, expected(theirs, PROMPT))


def test_chunks_and_single_tokens(pair):
    theirs, ours = pair
    driver = PagedDriver(ours)
    cuts = [0, 13, 14, 30, *range(31, 41)]
    pieces = [driver.step({0: PROMPT[a:b]})[0] for a, b in pairwise(cuts)]
    close(torch.cat(pieces), expected(theirs, PROMPT))


def test_ragged_batches(pair):
    """Requests of several lengths join and go on together, at different speeds."""
    theirs, ours = pair
    texts = {0: PROMPT, 1: PROMPT[5:33], 2: PROMPT[::-1], 3: [7]}
    done = dict.fromkeys(texts, 0)
    logits = {request: [] for request in texts}
    driver = PagedDriver(ours, block_size=8)
    for speeds in ({0: 20, 1: 1, 2: 9}, {2: 1, 3: 1, 0: 1}, {1: 27, 0: 19, 2: 30}):
        rows = {request: texts[request][done[request] : done[request] + n] for request, n in speeds.items()}
        for request, part in driver.step(rows).items():
            logits[request].append(part)
            done[request] += len(part)
    for request, tokens in texts.items():
        assert done[request] == len(tokens)
        close(torch.cat(logits[request]), expected(theirs, tokens))


def test_long_contexts_have_their_own_frequencies(tmp_path, monkeypatch):
    """Octavo's angles hang on how long requests may grow, transformers' on how long this one is: both are long here."""
    monkeypatch.setitem(TINY, "phi3-long", type(TINY["phi3"])(**PHI3, **longrope(16, 4)))
    theirs, path = make_tiny("phi3-long", tmp_path)
    close(PagedDriver(load_tiny(path)).step({0: PROMPT})[0], expected(theirs, PROMPT))


def test_checkpoints_of_models_without_a_head(tmp_path):
    """Embedding models are saved without "model." in front of their tensors' names."""
    theirs, path = make_tiny("qwen2-windows", tmp_path)
    theirs.model.save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen2ForCausalLM"]}))
    close(PagedDriver(load_tiny(path)).step({0: PROMPT})[0], expected(theirs, PROMPT))


def test_the_language_model_of_one_that_sees(tmp_path):
    """Gemma 3's larger checkpoints have their language model inside another, and tensors that it does not need."""
    theirs, path = make_tiny("gemma3", tmp_path)
    config = json.loads((path / "config.json").read_text())
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": config}
    (path / "config.json").write_text(json.dumps(outer))
    tensors = load_file(path / "model.safetensors")
    named = {f"language_model.{name}": tensor for name, tensor in tensors.items()}
    save_file({**named, "vision_tower.x.weight": torch.ones(2)}, path / "model.safetensors")
    close(PagedDriver(load_tiny(path)).step({0: PROMPT})[0], expected(theirs, PROMPT))


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3", "gemma3", "starcoder2"])
def test_bfloat16_is_close(name, tmp_path):
    theirs, path = make_tiny(name, tmp_path)
    logits = PagedDriver(load_tiny(path, dtype=torch.bfloat16)).step({0: PROMPT})[0]
    wanted = expected(theirs, PROMPT)
    error = (logits - wanted).abs().mean() / wanted.abs().mean()
    own = expected(theirs.bfloat16(), PROMPT)
    assert error < 0.05
    assert error < 2 * (own - wanted).abs().mean() / wanted.abs().mean()  # no worse than transformers in bfloat16
