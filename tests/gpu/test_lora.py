"""LoRA adapters on a GPU: the tokens of a CPU in float32, with graphs and without, alone and in any mixture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers_engine import tiny_llm
from helpers_lora import make_adapter
from helpers_models import make_tiny
from octavo import LoRARequest, SamplingParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

FAMILIES = ("llama", "qwen2", "qwen3", "gemma3", "phi3", "mixtral", "gpt2")
LENGTHS = (1, 5, 16, 17, 40, 100, 33, 64)
WHO = (0, 1, None, 2, 1, None, 0, 2)
GREEDY = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True, detokenize=False)
PROMPTS = [torch.randint(3, 131, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in LENGTHS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("gpu-lora")


def made(folder: Path, name: str) -> tuple[Path, list[LoRARequest]]:
    """A model and three adapters of different ranks."""
    base, path = make_tiny(name, folder)
    folders = [make_adapter(base, name, folder / f"{name}-{i}", i, r=rank)[1] for i, rank in enumerate((8, 3, 16))]
    return path, [LoRARequest(f"a{i}", i + 1, str(where)) for i, where in enumerate(folders)]


def tokens(path: Path, loras: list[LoRARequest], params: SamplingParams = GREEDY, alone: bool = False, **options):
    chosen = [None if who is None else loras[who] for who in WHO]
    sizes = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "enable_lora": True, "max_loras": 3}
    with tiny_llm(path, **{**sizes, **options}) as llm:
        cuts = [slice(i, i + 1) for i in range(len(WHO))] if alone else [slice(None)]
        batches = [llm.generate(PROMPTS[cut], params, use_tqdm=False, lora_request=chosen[cut]) for cut in cuts]
        return [list(output.outputs[0].token_ids) for outputs in batches for output in outputs]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_tokens_of_a_cpu(folder, name):
    path, loras = made(folder, name)
    assert tokens(path, loras, device="cuda") == tokens(path, loras, device="cpu")


@pytest.mark.parametrize(
    "options",
    [
        {"enforce_eager": True},
        {"async_scheduling": False},
        {"enable_prefix_caching": False},
        {"max_num_batched_tokens": 8},
        {"max_loras": 1},
        {"max_lora_rank": 100},
        {"kv_cache_memory": 11 * 3 * 2 * 2 * 16 * 16 * 4},  # eleven blocks: requests are preempted
    ],
    ids=str,
)
def test_the_way_does_not_matter(folder, options):
    path, loras = made(folder, "qwen3")
    expected = tokens(path, loras, device="cpu")
    assert tokens(path, loras, device="cuda", **{"max_model_len": 144, **options}) == expected


@pytest.mark.parametrize("options", [{}, {"enforce_eager": True}, {"max_num_batched_tokens": 16}], ids=str)
def test_deterministic_bits_are_the_same_alone_and_together(folder, options):
    """Sampled, so that a last bit of a logit would be seen sooner or later; in 16 bits."""
    path, loras = made(folder, "llama")
    params = SamplingParams(temperature=1.5, seed=3, max_tokens=30, ignore_eos=True, detokenize=False, logprobs=0)
    sizes = {"device": "cuda", "dtype": "bfloat16", "deterministic": True, **options}
    assert tokens(path, loras, params, **sizes) == tokens(path, loras, params, alone=True, **sizes)


def test_an_adapter_in_half_precision_stays_near(folder):
    path, loras = made(folder, "llama")
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=5, detokenize=False)
    found = []
    for options in ({"device": "cpu"}, {"device": "cuda", "dtype": "bfloat16"}):
        with tiny_llm(path, enable_lora=True, **options) as llm:
            outputs = llm.generate(PROMPTS, params, use_tqdm=False, lora_request=loras[2])
            found.append([max(entry.logprob for entry in output.outputs[0].logprobs[0].values()) for output in outputs])
    torch.testing.assert_close(torch.tensor(found[0]), torch.tensor(found[1]), rtol=0.15, atol=0.15)


@pytest.mark.parametrize("scheme", ["int8", "fp8"])
def test_quantized_weights(folder, scheme):
    """One step after each prompt, the likeliest tokens of a CPU's."""
    path, loras = made(folder, "llama")
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=0, detokenize=False)
    found = []
    for device in ("cpu", "cuda"):
        with tiny_llm(path, enable_lora=True, device=device, quantization=scheme) as llm:
            outputs = llm.generate(PROMPTS, params, use_tqdm=False, lora_request=loras[0])
            found.append([next(iter(output.outputs[0].logprobs[0].values())).logprob for output in outputs])
    torch.testing.assert_close(torch.tensor(found[0]), torch.tensor(found[1]), rtol=0.05, atol=0.05)
