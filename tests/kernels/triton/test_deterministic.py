"""Bit for bit the same: a request alone, beside others, in other chunks, decoded, recomputed, from a graph."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen3Config

from helpers_engine import tiny_llm
from helpers_models import VOCAB, PagedDriver, load_tiny, make_tiny
from octavo import LLM, SamplingParams
from octavo.config import NOT_ON_A_CPU, EngineConfig
from octavo.engine import Engine
from octavo.errors import UsageError
from octavo.execution.build_device import assemble
from octavo.execution.memory import draw_up
from octavo.kernels import for_device
from octavo.kernels.forward_batch import AttentionPlan, DeviceRows
from octavo.kernels.ops import Ops
from octavo.kernels.reference.ops import ReferenceOps
from octavo.kernels.triton.attention_plan import TritonPlan
from octavo.kernels.triton.deterministic import DeterministicOps
from octavo.models.decoder import DecoderModel
from octavo.outputs import RequestOutput
from octavo.weights.open import open_checkpoint

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}
Schedule = list[tuple[int, dict[int, int]]]
"""How many tokens request 0, and how many others, compute in each step."""


def schedules(length: int) -> dict[str, Schedule]:
    """Ways to compute ``length`` tokens."""
    half = length // 2
    return {
        "decoded at the end": [(length - 2, {}), (1, {}), (1, {})],
        "in chunks beside others": [(half - 3, {1: 9, 2: 1}), (1, {1: 1, 3: 40}), (length - half, {2: 1}), (2, {1: 5})],
        "behind a prefix": [(length // 64 * 64 or 16, {1: 3}), (length % 64 if length > 64 else length - 16, {2: 33})],
    }


def tokens(request: int) -> list[int]:
    rng = random.Random(request)
    return [rng.randrange(VOCAB) for _ in range(256)]


def run(model: DecoderModel, schedule: Schedule, seed: int = 0) -> Tensor:
    """The logits ``[tokens, V]`` of request 0; block numbers and the order of rows depend on ``seed``."""
    driver, found = PagedDriver(model, block_size=16, num_blocks=64, seed=seed), []
    for own, others in schedule:
        rows = {}
        for request, count in random.Random(seed).sample(sorted({0: own, **others}.items()), 1 + len(others)):
            start = driver.lengths.get(request, 0)
            rows[request] = tokens(request)[start : start + count]
        found.append(driver.step(rows)[0])
    return torch.cat(found)


def load(path: Path, device: str, dtype: torch.dtype, ops: Ops | None = None) -> DecoderModel:
    """A tiny model; in the interpreter, which is slow, its last layer alone."""
    model = load_tiny(path, ops=ops or DeterministicOps(), device=device, dtype=dtype)
    if device == "cpu":
        model.model.layers = model.model.layers[-1:]
        model.config = replace(model.config, num_layers=1, sliding_windows=model.config.sliding_windows[-1:])
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("deterministic")
    for name in ("qwen3", "llama-bias", "mistral", "qwen3-windows"):
        make_tiny(name, root)
    return root


@pytest.mark.parametrize(
    "name",
    ["qwen3", "qwen3-windows", *(pytest.param(n, marks=pytest.mark.gpu) for n in ("llama-bias", "mistral"))],
)
def test_logits_do_not_depend_on_the_schedule(device, dtype, folder, name):
    length = 37 if device == "cpu" else 200  # more than a tile of keys, and no multiple of any
    model = load(folder / name, device, dtype)
    alone = run(model, [(length, {})])
    reference = run(load(folder / name, device, torch.float32, ReferenceOps()), [(length, {})])
    assert (alone - reference).norm() <= TOLERANCE[dtype] * reference.norm()
    for seed, (title, schedule) in enumerate(schedules(length).items(), 1):
        assert torch.equal(run(model, schedule, seed), alone), title


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["qwen3", "qwen3-windows"])
def test_each_token_alone(device, dtype, folder, name):
    model = load(folder / name, device, dtype)
    assert torch.equal(run(model, [(1, {})] * 200), run(model, [(200, {})]))


def test_tiles_of_a_decode_step_need_no_host(device, folder):
    """A recorded step runs again with other lengths: only the device knows them."""
    model = load(folder / "qwen3", device, torch.float32)
    driver = PagedDriver(model, block_size=16, num_blocks=64)
    driver.step({0: tokens(0)[:33], 2: tokens(2)[:5]})
    batch = driver.batch({2: [5], 0: [6]})
    contexts = torch.tensor(batch.context_lens, dtype=torch.int32, device=device)
    expected = model(batch)
    starts, lines = (torch.tensor(x, dtype=torch.int32, device=device) for x in ([0, 1, 2], [1, 0]))
    batch.rows = DeviceRows(starts, contexts, lines)
    batch.block_tables = batch.block_tables.flip(0).contiguous()
    batch.context_lens = [256, 256]
    batch.attention = model.model.norm.ops.plan_attention(batch)
    assert torch.equal(model(batch), expected)


def test_a_plan_of_other_ops_is_refused(device, folder):
    driver = PagedDriver(load(folder / "qwen3", device, torch.float32))
    batch = driver.batch({0: [1, 2]})
    for plan in (AttentionPlan(), TritonPlan(batch)):
        batch.attention = plan
        with pytest.raises(TypeError, match="not from plan_attention of the same ops"):
            driver.model(batch)


def test_a_cpu_is_refused(folder):
    for make in (
        lambda: EngineConfig(model="m", device="cpu", deterministic=True),
        lambda: EngineConfig(model="m", deterministic=True).on("cpu"),
        lambda: for_device("cpu", deterministic=True),
        lambda: LLM(str(folder / "qwen3"), device="cpu", deterministic=True),
    ):
        with pytest.raises(UsageError) as error:
            make()
        assert str(error.value) == NOT_ON_A_CPU
    with pytest.raises(UsageError, match="accepted: True, False"):
        EngineConfig(model="m", deterministic="yes")


def test_a_gpu_gets_the_ops(monkeypatch):
    assert type(for_device("cuda", deterministic=True)) is DeterministicOps
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs the Triton kernels, but triton is not installed"):
        for_device("cuda", deterministic=True)


def engine_of(path: Path, device: str, **options: Any) -> Engine:
    """An engine whose steps a ``DeviceRunner`` runs; in the interpreter a graph is a step run again."""
    options = {"max_num_seqs": 4, "kv_cache_memory": 1 << 20, "dtype": "float32", "debug": True, **options}
    config, checkpoint = EngineConfig.from_kwargs(str(path), **options).on(device), open_checkpoint(path)
    model = load(path, device, torch.float32)
    ledger = draw_up(model.config, config, dtype="float32", kv_dtype="float32", weights=0, free=1 << 34)
    runner = assemble(config, model, model.model.norm.ops, ledger, torch.float32, torch.device(device))
    return Engine(config, checkpoint.config, runner, ledger, None)


def finish(engine: Engine, work: list[tuple[list[int], SamplingParams]]) -> list[RequestOutput]:
    names = [engine.add_request(prompt, params) for prompt, params in work]
    done = {}
    while engine.has_unfinished_requests():
        done |= {output.request_id: output for output in engine.step()}
    engine.shutdown()
    return [done[name] for name in names]


def test_an_engine_gives_the_same_numbers_in_any_batch(device, folder):
    kinds: list[tuple[list[int], dict[str, Any]]] = [
        ([5, 6, 7] * 10, {"temperature": 0.0, "logprobs": 2}),
        ([9, 8] * 5, {"temperature": 0.9, "seed": 3, "prompt_logprobs": 1}),
        ([4] * 16, {"temperature": 1.0, "seed": 4, "top_k": 20, "logprobs": 0}),
    ]
    work = [(prompt, SamplingParams(max_tokens=4, ignore_eos=True, **options)) for prompt, options in kinds]
    path = folder / "qwen3"
    alone = [values(finish(engine_of(path, device, enable_prefix_caching=False), [one])[0]) for one in work]
    chunked = finish(engine_of(path, device, max_num_batched_tokens=10, enforce_eager=True), work)
    assert [values(output) for output in chunked] == alone
    layers = 1 if device == "cpu" else 3
    tight = finish(engine_of(path, device, kv_cache_memory=4 * 16 * layers * 2 * 2 * 16 * 4, max_model_len=48), work)
    assert [values(output) for output in tight] == alone
    assert sum(output.metrics.num_preemptions for output in tight) > 0


MODEL = Qwen3Config(
    vocab_size=32_000,
    hidden_size=1024,
    intermediate_size=3072,
    num_hidden_layers=4,
    num_attention_heads=16,
    num_key_value_heads=4,
    head_dim=128,
    max_position_embeddings=4096,
    architectures=["Qwen3ForCausalLM"],
)
BLOCK = 16
BLOCK_BYTES = BLOCK * 4 * 2 * 4 * 128 * 2
ENGINES: dict[str, dict[str, Any]] = {
    "chunks of 64": {"max_num_batched_tokens": 64},
    "chunks of 512": {"max_num_batched_tokens": 512},
    "eager": {"enforce_eager": True},
    "preempted": {"kv_cache_memory": 90 * BLOCK_BYTES, "max_model_len": 1024},
    "no cache": {"enable_prefix_caching": False, "max_num_batched_tokens": 200},
}


def requests(count: int, seed: int) -> list[tuple[list[int], SamplingParams]]:
    """Some begin alike; greedy, drawn, filtered, with log-probabilities or without."""
    rng = random.Random(seed)
    stem = [rng.randrange(32_000) for _ in range(150)]
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0, "logprobs": 3},
        {"temperature": 1.0, "seed": 7, "logprobs": 0},
        {"temperature": 0.9, "seed": 3, "top_p": 0.9, "top_k": 40, "logprobs": 1},
        {"temperature": 0.0, "prompt_logprobs": 1, "logprobs": 1},
        {"temperature": 1.0, "seed": 5},
    ]
    found = []
    for i in range(count):
        own = [rng.randrange(32_000) for _ in range(rng.choice([1, 17, 130, 400]))]
        params = SamplingParams(max_tokens=rng.randint(20, 60), ignore_eos=True, **kinds[i % len(kinds)])
        found.append(((stem if i % 3 == 0 else []) + own, params))
    return found


def values(output: RequestOutput) -> tuple[Any, ...]:
    """All numbers of an output, as they are."""
    scores = [*(output.prompt_logprobs or ()), *(output.outputs[0].logprobs or ())]
    exact = [entry and {token: (found.logprob, found.rank) for token, found in entry.items()} for entry in scores]
    return output.outputs[0].token_ids, exact


def big_llm(path: Path, **options: Any) -> LLM:
    defaults = {"device": "cuda", "deterministic": True, "load_format": "dummy", "max_num_seqs": 32}
    return tiny_llm(path, **{**defaults, "dtype": "bfloat16", "kv_cache_memory": 4096 * BLOCK_BYTES, **options})


@pytest.fixture(scope="module")
def big(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("big")
    MODEL.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def alone(big) -> list[tuple[Any, ...]]:
    """Each request with nothing else in the engine, and nothing cached."""
    with big_llm(big, enable_prefix_caching=False) as llm:
        return [values(llm.generate([prompt], params, use_tqdm=False)[0]) for prompt, params in requests(17, seed=1)]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ENGINES)
def test_tokens_and_logprobs_in_a_batch_are_those_alone(device, big, alone, name):
    work = requests(17, seed=1)
    preemptions = 0
    with big_llm(big, **ENGINES[name]) as llm:
        for _ in range(2):  # the second time with a warm cache
            outputs = llm.generate([prompt for prompt, _ in work], [params for _, params in work], use_tqdm=False)
            preemptions += sum(output.metrics.num_preemptions for output in outputs)
            for output, expected in zip(outputs, alone, strict=True):
                assert values(output) == expected
    assert bool(preemptions) == (name == "preempted")
