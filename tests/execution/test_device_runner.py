"""The runner for GPUs, here on a CPU, where the kernels are the reference's and a graph is a step run again."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from helpers_engine import tiny_llm
from helpers_grammar import ENGINE, make_model, mixed_requests
from helpers_lora import make_adapter
from helpers_models import make_tiny
from octavo import LLM, SamplingParams
from octavo.config import EngineConfig
from octavo.core.plan import StepPlan
from octavo.engine import Engine
from octavo.execution import graphs
from octavo.execution.build import _build_model, lora_sizes
from octavo.execution.build_device import assemble
from octavo.execution.device_runner import DeviceRunner
from octavo.execution.memory import draw_up
from octavo.kernels.reference.ops import ReferenceOps
from octavo.layers.build import Build
from octavo.outputs import RequestOutput
from octavo.sampling_params import PoolingParams
from octavo.text.tokenizer import Tokenizer, load_tokenizer
from octavo.weights.open import open_checkpoint

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return make_tiny("qwen3", tmp_path_factory.mktemp("device"))[1]


def device_engine(path: Path, tokenizer: Tokenizer | None = None, **options) -> tuple[Engine, DeviceRunner]:
    """An engine whose steps are run by a ``DeviceRunner``."""
    options = {"kv_cache_memory": 1 << 20, "dtype": "float32", "debug": True, **options}
    config = EngineConfig.from_kwargs(str(path), **options).on("cpu")
    checkpoint = open_checkpoint(path)
    ops = ReferenceOps()
    build = Build(ops, dtype=torch.float32, device=DEVICE, lora=lora_sizes(config))
    model = _build_model(config, checkpoint, build, progress=False)
    ledger = draw_up(model.config, config, dtype="float32", kv_dtype="float32", weights=0, free=1 << 34)
    runner = assemble(config, model, ops, ledger, torch.float32, DEVICE)
    return Engine(config, checkpoint.config, runner, ledger, tokenizer), runner


def run(engine: Engine, work: list[tuple[list[int], SamplingParams]], together: bool = True) -> list[RequestOutput]:
    done = {}
    ids = []
    for prompt, params in work:
        ids.append(engine.add_request(prompt, params))
        if not together:
            done |= {output.request_id: output for output in engine.step()}
    while engine.has_unfinished_requests():
        for output in engine.step():
            done[output.request_id] = output
    return [done[name] for name in ids]


def work(seed: int, count: int = 9) -> list[tuple[list[int], SamplingParams]]:
    rng = random.Random(seed)
    kinds = [
        {"temperature": 0.0},
        {"temperature": 0.9, "seed": 5},
        {"temperature": 1.2, "top_k": 5, "top_p": 0.8, "seed": 7},
        {"temperature": 0.0, "logprobs": 2},
        {"temperature": 0.7, "repetition_penalty": 1.3, "frequency_penalty": 0.2, "seed": 1},
        {"temperature": 0.0, "prompt_logprobs": 1},
        {"temperature": 0.0, "min_tokens": 4, "stop_token_ids": [3, 4, 5, 6, 7]},
    ]
    found = []
    for i in range(count):
        options = kinds[i % len(kinds)]
        prompt = [rng.randrange(3, 131) for _ in range(rng.choice([1, 2, 16, 17, 40]))]
        found.append((prompt, SamplingParams(max_tokens=rng.randint(4, 24), **options)))
    return found


def as_values(outputs: list[RequestOutput]) -> list[tuple]:
    return [
        (
            o.outputs[0].token_ids,
            o.outputs[0].finish_reason,
            logprobs(o.outputs[0].logprobs),
            logprobs(o.prompt_logprobs),
        )
        for o in outputs
    ]


def logprobs(entries) -> list | None:
    return entries and [
        entry and {token: (round(value.logprob, 3), value.rank) for token, value in entry.items()} for entry in entries
    ]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("options", [{}, {"enforce_eager": True}, {"async_scheduling": False}], ids=str)
def test_the_same_tokens_as_the_plain_runner(path, seed, together, options):
    print("seed", seed)
    requests = work(seed)
    with tiny_llm(path, max_num_seqs=4, max_num_batched_tokens=20, kv_cache_memory=1 << 18) as llm:
        expected = as_values(run(llm.engine, requests, together))
    engine, _ = device_engine(path, max_num_seqs=4, max_num_batched_tokens=20, kv_cache_memory=1 << 18, **options)
    assert as_values(run(engine, requests, together)) == expected
    engine.shutdown()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("options", [{}, {"enforce_eager": True}, {"async_scheduling": False}], ids=str)
def test_masked_steps_give_the_tokens_of_the_plain_runner(tmp_path, seed, together, options):
    """Forms beside plain requests: in graphs and without, with the sampling of a step after the next one's plan."""
    print("seed", seed)
    model, requests = make_model(tmp_path), mixed_requests(seed, 10)
    sizes = {"max_num_seqs": 4, "max_num_batched_tokens": 20, "kv_cache_memory": 1 << 17, "block_size": 4}
    with LLM(str(model), **{**ENGINE, **sizes}) as llm:
        expected = run(llm.engine, requests, together)
    engine, _ = device_engine(model, load_tokenizer(model), **sizes, **options)
    found = run(engine, requests, together)
    assert [[c.token_ids for c in o.outputs] for o in found] == [[c.token_ids for c in o.outputs] for o in expected]
    assert as_values(found) == as_values(expected)
    engine.shutdown()


def test_a_masked_step_is_sampled_when_its_masks_come_and_not_before(tmp_path):
    model = make_model(tmp_path)
    engine, runner = device_engine(model, load_tokenizer(model), max_num_seqs=2)
    form = {"regex": "[a-z]{6}"}
    run(engine, [([9], SamplingParams(structured_outputs=form))])
    order: list[str] = []
    launch, sample = runner.launch, runner._sample_masked
    runner.launch = lambda plan: order.append(f"launch {plan.step}") or launch(plan)
    runner._sample_masked = lambda *args: order.append("sample") or sample(*args)
    run(engine, [([9], SamplingParams(structured_outputs=form))])
    launches = [entry for entry in order if entry != "sample"]
    assert order[:3] == [launches[0], "sample", launches[1]]
    assert order[3:5] == ["sample", launches[2]], "the second step's masks come with the first one's tokens"
    engine.shutdown()


@pytest.mark.parametrize("options", [{}, {"enforce_eager": True}, {"async_scheduling": False}], ids=str)
def test_requests_whose_options_leave_no_token_are_refused_as_by_the_plain_runner(tmp_path, options):
    """At once and in mid-answer; in graphs and without; beside masked steps and without."""
    folder = make_model(tmp_path)
    tokenizer = load_tokenizer(folder)
    (seven,) = tokenizer.encode("7", add_special_tokens=False)
    only = {"allowed_token_ids": [seven], "max_tokens": 20}
    bad = [
        SamplingParams(**only, min_tokens=1, stop_token_ids=[seven]),
        SamplingParams(**only, bad_words=["7" * 6], logprobs=1),
        SamplingParams(**only, structured_outputs={"regex": "7{4}a"}),
    ]
    requests = [([30 + i] * 5, params) for i, params in enumerate(bad)] + mixed_requests(3, 8)
    limits = {"max_num_seqs": 4, "max_num_batched_tokens": 20}
    with LLM(str(folder), **{**ENGINE, **limits}) as llm:
        expected = run(llm.engine, requests)
    engine, _ = device_engine(folder, tokenizer, **{**ENGINE, **limits, **options})
    found = run(engine, requests)
    engine.scheduler.check()
    engine.shutdown()
    assert as_values(found) == as_values(expected)
    assert [o.refused for o in found] == [o.refused for o in expected]
    assert [len(o.outputs[0].token_ids) for o in found[:3]] == [0, 5, 4]
    assert [o.refused_kind for o in found[:3]] == ["request", "request", "form"]
    assert {o.outputs[0].finish_reason for o in found[:3]} == {"error"}
    assert all(o.refused is None for o in found[3:])


def test_vectors_are_those_of_the_plain_runner(path):
    """A prompt of one token would be a recorded step, whose hidden states nobody sees."""
    requests = [(prompt, PoolingParams() if i % 2 else params) for i, (prompt, params) in enumerate(work(3))]
    requests.append(([9], PoolingParams()))
    with tiny_llm(path, max_num_seqs=4, max_num_batched_tokens=20, kv_cache_memory=1 << 18) as llm:
        expected = run(llm.engine, requests)
    engine, _ = device_engine(path, max_num_seqs=4, max_num_batched_tokens=20, kv_cache_memory=1 << 18)
    for found, wanted in zip(run(engine, requests), expected, strict=True):
        assert (found.embedding is None) == (wanted.embedding is None)
        if wanted.embedding is not None:
            torch.testing.assert_close(torch.tensor(found.embedding), torch.tensor(wanted.embedding))
    engine.shutdown()


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> tuple[Path, dict[str, Path]]:
    """A model, and adapters of it by name."""
    folder = tmp_path_factory.mktemp("adapters")
    base, path = make_tiny("qwen3", folder)
    return path, {f"a{i}": make_adapter(base, "qwen3", folder / f"a{i}", i)[1] for i in range(3)}


def run_adapted(engine: Engine, names: list[str | None]) -> list[list[int]]:
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    ids = [engine.add_request([5, 6, 7, 8, 9 + i % 2] * (1 + i), params, lora=name) for i, name in enumerate(names)]
    done = {}
    while engine.has_unfinished_requests():
        done |= {output.request_id: output for output in engine.step()}
    return [done[name].outputs[0].token_ids for name in ids]


@pytest.mark.parametrize("options", [{}, {"enforce_eager": True}, {"max_loras": 1}], ids=str)
def test_adapters_give_the_tokens_of_the_plain_runner(adapters, options):
    """In decode steps, in mixed ones and in those without a graph; slots are used again with other adapters."""
    path, folders = adapters
    names = [None, "a0", "a1", "a1", None, "a2", "a0", None]
    sizes = {"max_num_seqs": 3, "max_num_batched_tokens": 12, "enable_lora": True, "max_loras": 2}
    with tiny_llm(path, **sizes) as llm:
        engine, _ = device_engine(path, **{**sizes, **options})
        for name, folder in folders.items():
            for each in (engine, llm.engine):
                each.add_lora(name, str(folder))
        assert run_adapted(engine, names) == run_adapted(llm.engine, names)
        assert run_adapted(engine, names[::-1]) == run_adapted(llm.engine, names[::-1])
    engine.shutdown()


def test_a_failed_step_leaves_no_wrong_adapter_behind(adapters, monkeypatch):
    """What it was about to tell the device is not lost: the next in its slot has its own adapter, or none."""
    path, folders = adapters
    engine, runner = device_engine(path, enable_lora=True, max_num_seqs=1)
    engine.add_lora("a0", str(folders["a0"]))
    expected = {name: run_adapted(engine, [name])[0] for name in (None, "a0")}
    assert expected[None] != expected["a0"]
    for name in ("a0", None, "a0"):  # each after one that had the other
        with monkeypatch.context() as patch:
            patch.setattr(runner.state, "send", lambda staging: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run_adapted(engine, [name])
        assert run_adapted(engine, [name])[0] == expected[name]
    engine.shutdown()


def test_a_pool_so_small_that_requests_are_preempted(path):
    requests = [([5 + i] * 20, SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)) for i in range(4)]
    plans: list[StepPlan] = []
    engine, _ = device_engine(path, max_num_seqs=4, kv_cache_memory=11 * 16 * 3 * 2 * 2 * 16 * 4, max_model_len=64)
    engine.listeners.append(lambda plan, events: plans.append(plan))
    found = as_values(run(engine, requests))
    assert any("Preempted" in type(e).__name__ for plan in plans if plan for e in plan.events)
    with tiny_llm(path) as llm:
        assert found == as_values(run(llm.engine, requests))


def test_a_decode_step_takes_a_graph_that_is_large_enough(path):
    engine, runner = device_engine(path, max_num_seqs=7)
    sizes = []
    decode = runner._graphs.decode
    runner._graphs.decode = lambda rows: sizes.append(rows) or decode(rows)
    run(engine, [([7], SamplingParams(temperature=0, max_tokens=3 + i, ignore_eos=True)) for i in range(5)])
    assert sizes[0] == 5
    assert sizes == sorted(sizes, reverse=True)
    assert set(runner._graphs._decode) == {1, 2, 4, 7}


def test_a_mixed_step_takes_a_graph_when_its_size_comes_for_the_second_time(path):
    engine, runner = device_engine(path, max_num_seqs=7, enable_prefix_caching=False)
    steps = []
    mixed = runner._graphs.mixed
    runner._graphs.mixed = lambda tokens, rows: steps.append((tokens, rows, mixed(tokens, rows))) or steps[-1][2]
    for length in (20, 19, 30):
        run(engine, [([7] * length, SamplingParams(temperature=0, max_tokens=2, ignore_eos=True))])
    assert [(tokens, rows, graph and graph.shape) for tokens, rows, graph in steps] == [
        (20, 1, None),
        (19, 1, (32, 1, 1)),
        (30, 1, (32, 1, 1)),
    ]


def test_a_step_whose_graph_finds_no_memory_is_launched_kernel_by_kernel(path, monkeypatch):
    engine, runner = device_engine(path, max_num_seqs=7, enable_prefix_caching=False)
    asked = []

    def no_memory(shape, **_):
        asked.append(shape)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(runner._graphs, "_record_mixed", no_memory)
    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    found = [run(engine, [([7] * 20, params)])[0].outputs[0].token_ids for _ in range(4)]
    assert len(asked) == 1
    assert all(tokens == found[0] for tokens in found)
    assert len(found[0]) == 2


def test_few_mixed_graphs_are_kept(path, monkeypatch):
    monkeypatch.setattr(graphs, "MOST_MIXED", 2)
    engine, runner = device_engine(path, max_num_seqs=7)
    for tokens in (16, 16, 32, 32, 16, 48, 48):
        runner._graphs.mixed(tokens, 1)
    assert list(runner._graphs._mixed) == [(16, 1, 1), (48, 1, 1)]
    assert runner._graphs.mixed(1 << 20, 1) is None
    engine.shutdown()


def test_rows_that_fill_up_a_graph_touch_no_request(path):
    engine, runner = device_engine(path, max_num_seqs=4)
    for layer in runner.kv_cache:
        for tensor in layer.tensors:
            tensor.fill_(7.0)
    engine.add_request([9, 8, 7], SamplingParams(temperature=0, max_tokens=30, ignore_eos=True))
    for name in ("a", "b"):
        engine.add_request([9, 8, 7], SamplingParams(temperature=0, max_tokens=30, ignore_eos=True), request_id=name)
    for _ in range(6):
        engine.step()
    used = {block for request in engine.scheduler.running for block in request.blocks}
    others = [b for b in range(engine.ledger.num_blocks) if b not in used]
    assert all((layer.keys[others] == 7.0).all() for layer in runner.kv_cache)
    engine.shutdown()


def test_a_nan_fails_its_request_alone(path):
    engine, runner = device_engine(path, max_num_seqs=4)
    embed = runner.model.model.embed_tokens.weight
    embed.data[100] = torch.nan
    good, bad = run(
        engine, [([5, 6], SamplingParams(temperature=0, max_tokens=5)), ([5, 100], SamplingParams(max_tokens=5))]
    )
    assert bad.outputs[0].finish_reason == "error"
    assert good.outputs[0].finish_reason in ("length", "stop")


def test_a_device_that_is_not_there_is_refused(path):
    from octavo.errors import UsageError

    with pytest.raises(UsageError, match="accepted"):
        LLM(str(path), device="cuda:99")
    with pytest.raises(UsageError, match="accepted: auto, cpu, cuda"):
        LLM(str(path), device="gpu")


def test_nan_left_in_a_block_harms_no_later_request(path):
    engine, runner = device_engine(path, max_num_seqs=2, enable_prefix_caching=False, max_model_len=64)
    runner.model.model.embed_tokens.weight.data[100] = torch.nan
    blocks = engine.ledger.num_blocks
    bad = [([100] * 17, SamplingParams(max_tokens=1))] * blocks
    assert {o.outputs[0].finish_reason for o in run(engine, bad)} == {"error"}
    good = run(engine, [([5, 6, 7], SamplingParams(temperature=0, max_tokens=20, ignore_eos=True))] * 3)
    assert {o.outputs[0].finish_reason for o in good} == {"length"}


def test_a_launch_that_fails_leaves_no_changes_behind(path, monkeypatch):
    engine, runner = device_engine(path, max_num_seqs=2)
    monkeypatch.setattr(runner._sampler, "add", lambda *args, **kwargs: 1 / 0)
    engine.add_request([5] * 20, SamplingParams(max_tokens=1))
    with pytest.raises(ZeroDivisionError):
        engine.step()
    assert runner.state._places == []
    assert not engine.has_unfinished_requests()


def test_requests_end_even_if_the_device_is_lost(path, monkeypatch):
    engine, runner = device_engine(path, max_num_seqs=2)
    monkeypatch.setattr(runner, "_run", lambda *args: 1 / 0)
    monkeypatch.setattr(runner, "wait", lambda: [][0])
    engine.add_request([5] * 20, SamplingParams(max_tokens=1))
    with pytest.raises(IndexError):
        engine.step()
    assert not engine.has_unfinished_requests()


def test_ops_that_wait_for_the_device_are_not_recorded(path):
    assert not ReferenceOps().graph_safe
