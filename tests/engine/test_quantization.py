"""Quantized models through the whole engine."""

from __future__ import annotations

import warnings

import pytest
import torch

from helpers_models import make_tiny
from helpers_smollm2 import PROMPTS, smollm2_path
from octavo import LLM, EngineConfig, SamplingParams
from octavo.errors import UsageError
from octavo.kernels.packed import BlockWeight, Int4Weight, Int8Weight, PackedWeight
from octavo.kernels.reference.ops import ReferenceOps

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=1)
OPTIONS = {"dtype": "float32", "device": "cpu", "kv_cache_memory": 64 << 20, "max_model_len": 128}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(make_tiny("llama", tmp_path_factory.mktemp("tiny"))[1])


class KeepsForms(ReferenceOps):
    """The reference, which multiplies what it is given as it is."""


def reference(monkeypatch):
    monkeypatch.setattr("octavo.execution.build.for_device", lambda device, deterministic: KeepsForms())


def packed_weights(llm: LLM) -> list[PackedWeight]:
    modules = llm.engine._executor._runner.model.modules()
    return [m.packed for m in modules if isinstance(getattr(m, "packed", None), PackedWeight)]


def test_argument(tiny, monkeypatch):
    reference(monkeypatch)
    tokens = list(range(3, 13))
    with LLM(tiny, quantization="int8", **OPTIONS) as llm:
        assert {type(weight) for weight in packed_weights(llm)} == {Int8Weight}
        assert len(packed_weights(llm)) == 3 * 4 + 1
        assert llm.generate([tokens], GREEDY, use_tqdm=False)[0].outputs[0].token_ids


@pytest.mark.parametrize(("quantization", "lines"), [("w8a8", 1), ("int8", 0)])
def test_w8a8_says_what_it_costs(tiny, quantization, lines, caplog):
    LLM(tiny, quantization=quantization, **OPTIONS).shutdown()
    said = [record.getMessage() for record in caplog.records if "greedy tokens" in record.getMessage()]
    assert len(said) == lines
    assert all("'w8a8' rounds activations to 8 bits" in line and "90%" in line for line in said)


def test_dummy_weights(tiny):
    with LLM(tiny, quantization="fp8-block", load_format="dummy", **OPTIONS) as llm:
        assert len(llm.generate([[5, 6, 7]], GREEDY, use_tqdm=False)[0].outputs[0].token_ids) == 12


def test_what_does_not_fit_is_said_once(tiny):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        LLM(tiny, quantization="int4-g32", **OPTIONS).shutdown()
    assert [str(w.message) for w in caught if "int4" in str(w.message)] == [
        "int4-g32 does not fit matrices with 84 inputs: 3 stay as they are (model.layers.0.mlp.down_proj, …)"
    ]


@pytest.mark.parametrize("bad", ["int3", "INT8", "", 8, True])
def test_an_unknown_scheme(bad):
    with pytest.raises(
        UsageError, match=r"quantization=.* is not supported; accepted: None, none, file, int8, .*int4-g32"
    ):
        EngineConfig(model="m", quantization=bad)


def test_deterministic_products_are_not_quantized():
    with pytest.raises(UsageError, match="deterministic=True with quantization='int8'; accepted: None, none"):
        EngineConfig(model="m", device="cuda", deterministic=True, quantization="int8")


@pytest.mark.model
def test_a_file_kept_packed_gives_the_same_tokens(monkeypatch):
    smollm2_path()
    reference(monkeypatch)
    outputs, few = {}, SamplingParams(temperature=0, max_tokens=4, logprobs=1)
    for quantization in ("none", "file"):
        with LLM("smollm2-135m", quantization=quantization, **OPTIONS) as llm:
            kinds = {weight.kind for weight in packed_weights(llm) if isinstance(weight, BlockWeight)}
            outputs[quantization] = [o.outputs[0] for o in llm.generate(PROMPTS[1], few, use_tqdm=False)]
            assert kinds == (set() if quantization == "none" else {"Q4_1", "Q8_0"})
    assert [o.token_ids for o in outputs["file"]] == [o.token_ids for o in outputs["none"]]
    for kept, plain in zip(outputs["file"], outputs["none"], strict=True):
        assert kept.cumulative_logprob == pytest.approx(plain.cumulative_logprob, abs=1e-3)


@pytest.mark.model
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_a_quantized_model_still_knows_it(quantization, monkeypatch):
    smollm2_path()
    reference(monkeypatch)
    with LLM("smollm2-135m", quantization=quantization, **OPTIONS) as llm:
        forms = {type(weight) for weight in packed_weights(llm)}
        assert forms == ({Int8Weight} if quantization == "int8" else {Int8Weight, Int4Weight})
        answer = llm.generate(["The capital of France is"], SamplingParams(temperature=0, max_tokens=3), use_tqdm=False)
        assert "Paris" in answer[0].outputs[0].text
        assert all(tensor.device == torch.device("cpu") for w in packed_weights(llm) for tensor in w.tensors().values())
