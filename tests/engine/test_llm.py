"""``LLM`` with text: stop strings, streams, chats, bad words."""

from __future__ import annotations

import gc
import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from helpers_engine import tiny_llm
from helpers_text import byte_level_bpe
from octavo import RequestError, SamplingParams

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A tiny random Llama with a small real tokenizer and a chat template."""
    path = tmp_path_factory.mktemp("tiny-text")
    backend = byte_level_bpe()
    config = LlamaConfig(
        vocab_size=backend.get_vocab_size(), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)
    model.save_pretrained(path)
    backend.save(str(path / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


@pytest.fixture(scope="module")
def llm(path):
    with tiny_llm(path) as llm:
        yield llm


PARAMS = {"temperature": 1.0, "max_tokens": 60, "ignore_eos": True}


def one(llm, prompt="The quick", **options):
    return llm.generate(prompt, SamplingParams(**{**PARAMS, **options}), use_tqdm=False)[0].outputs[0]


@pytest.mark.parametrize("seed", range(12))
def test_a_stop_string_cuts_the_text_wherever_tokens_end(llm, seed):
    whole = one(llm, seed=seed)
    middle = len(whole.text) // 2
    stop = whole.text[middle : middle + 3]
    cut = one(llm, seed=seed, stop=[stop, "never seen \u2603"])
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", stop)
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
    assert stop in llm.tokenizer.decode(cut.token_ids)
    included = one(llm, seed=seed, stop=[stop], include_stop_str_in_output=True)
    assert included.text == cut.text + stop


@pytest.mark.parametrize("seed", range(6))
def test_a_stream_never_shows_half_a_stop_string(llm, seed):
    whole = one(llm, seed=seed)
    stop = whole.text[20:26]
    shown = ""
    for piece in llm.stream("The quick", SamplingParams(**PARAMS, seed=seed, stop=[stop])):
        shown += piece.text
        assert stop not in shown
        assert whole.text.startswith(shown)
    assert shown == whole.text[: whole.text.index(stop)]


def test_min_tokens_outlasts_stop_strings_and_stop_tokens(llm):
    whole = one(llm, seed=1)
    stop, token = whole.text[3:5], whole.token_ids[4]
    output = one(llm, seed=1, stop=[stop], stop_token_ids=[token], min_tokens=30)
    assert len(output.token_ids) >= 30
    assert token not in output.token_ids[:30]  # it cannot even be sampled before


def test_a_stop_token_ends_the_text_before_it(llm):
    whole = one(llm, temperature=0.0)
    token = whole.token_ids[10]
    first = whole.token_ids.index(token)
    output = one(llm, temperature=0.0, stop_token_ids=[token])
    assert output.token_ids == whole.token_ids[: first + 1]
    assert (output.finish_reason, output.stop_reason) == ("stop", token)
    assert output.text == llm.tokenizer.decode(output.token_ids[:-1]).removesuffix("\ufffd") or "\ufffd" in output.text
    assert (
        one(llm, temperature=0.0, stop_token_ids=[token], include_stop_str_in_output=True).token_ids == output.token_ids
    )


def test_text_is_what_the_tokenizer_decodes(llm):
    for seed in range(5):
        output = one(llm, seed=seed)
        prompt = llm.tokenizer.encode("The quick")
        assert output.text == llm.tokenizer.decode(prompt + output.token_ids).removeprefix("The quick")


def test_detokenize_false_leaves_the_text_empty(llm):
    output = one(llm, seed=1, detokenize=False)
    assert output.text == ""
    assert output.token_ids == one(llm, seed=1).token_ids


def test_special_tokens_are_shown_only_when_asked_for(llm):
    special = llm.tokenizer.token_to_id("<|im_end|>")
    bias = {"logit_bias": {special: 100.0}, "temperature": 0.0, "max_tokens": 3}
    assert one(llm, **bias).text == ""
    assert one(llm, **bias, skip_special_tokens=False).text == "<|im_end|>" * 3


def test_bad_words_never_appear(llm):
    whole = one(llm, seed=5)
    words = sorted({w for w in whole.text.split() if w.isascii() and w.isalpha() and len(w) > 1})[:3]
    assert words
    output = one(llm, seed=5, bad_words=words)
    for word in words:
        ids = llm.tokenizer.encode(" " + word, add_special_tokens=False)
        spans = [output.token_ids[i : i + len(ids)] for i in range(len(output.token_ids))]
        assert ids not in spans


def test_allowed_token_ids_are_the_only_ones(llm):
    assert set(one(llm, seed=2, allowed_token_ids=[40, 41, 42]).token_ids) <= {40, 41, 42}


def test_chat_uses_the_template_and_several_conversations_are_one_batch(llm):
    conversations = [[{"role": "user", "content": text}] for text in ("Hi", "Bye")]
    outputs = llm.chat(conversations, SamplingParams(max_tokens=3), use_tqdm=False)
    assert [o.prompt for o in outputs] == ["[user] Hi\n[assistant]", "[user] Bye\n[assistant]"]
    assert outputs[0].prompt_token_ids == llm.tokenizer.encode(outputs[0].prompt, add_special_tokens=False)


def test_chat_without_a_template_says_what_to_do(path, tmp_path):
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((path / name).read_bytes())
    with tiny_llm(tmp_path) as llm:
        with pytest.raises(RequestError, match="no chat template; use generate, or give chat_template="):
            llm.chat([{"role": "user", "content": "Hi"}])
        output = llm.chat([{"role": "user", "content": "Hi"}], SamplingParams(max_tokens=2), chat_template=TEMPLATE)
        assert output[0].prompt == "[user] Hi\n[assistant]"


def test_closing_a_stream_aborts_its_request(llm):
    stream = llm.stream("The quick", SamplingParams(max_tokens=400, ignore_eos=True))
    next(stream)
    assert llm.engine.has_unfinished_requests()
    stream.close()
    assert not llm.engine.has_unfinished_requests()


GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)


def test_streams_may_be_read_in_turns_with_calls_in_between(llm):
    expected = [one(llm, prompt, temperature=0.0, max_tokens=20).text for prompt in ("The quick", "print")]
    texts, streams = ["", ""], [llm.stream(prompt, GREEDY) for prompt in ("The quick", "print")]
    for i in (0, 1, 1, 0):
        texts[i] += next(streams[i]).text
    llm.generate("add", SamplingParams(max_tokens=60, ignore_eos=True), use_tqdm=False)  # it outlasts both
    for i in (0, 1):
        rest = list(streams[i])
        texts[i] += "".join(piece.text for piece in rest)
        assert rest[-1].finish_reason == "length"
    assert texts == expected


def test_dropping_a_stream_that_was_never_read_aborts_its_request(llm):
    stream = llm.stream("The quick", GREEDY)
    assert llm.engine.has_unfinished_requests()
    del stream
    gc.collect()
    assert not llm.engine.has_unfinished_requests()


def test_following_a_request_that_is_not_there_is_refused(llm):
    with pytest.raises(RequestError, match="no unfinished request 'x'"):
        next(llm.follow("x"))


def test_a_prompt_far_too_long_is_refused_by_its_beginning(llm, monkeypatch):
    encode, lengths = llm.tokenizer.encode, []

    def counted(text, **options):
        lengths.append(len(text))
        return encode(text, **options)

    monkeypatch.setattr(llm.tokenizer, "encode", counted)
    with pytest.raises(RequestError, match=r"has 1000000 characters, far more than the \d+ tokens"):
        llm.generate("The quick " * 100_000)
    assert sum(lengths) < 20_000
    monkeypatch.undo()
    monkeypatch.setattr(llm.engine._intake, "_token_limit", 30)  # 480 characters are tried first
    text = "<|im_start|>" * 50
    assert llm.encode(text) == encode(text)


@pytest.mark.parametrize("prompt", [None, 5, b"abc", object(), [object()], [b"abc"]])
def test_prompts_of_another_kind_are_refused(llm, prompt):
    with pytest.raises(RequestError, match="accepted: text"):
        llm.generate(prompt, GREEDY)


def test_prompts_may_come_from_numpy_torch_or_a_generator(llm):
    plain = llm.generate([[5, 6, 7]], GREEDY, use_tqdm=False)[0].outputs[0].token_ids
    ids = np.array([5, 6, 7])
    for prompt in (ids, [ids], list(ids), torch.tensor([5, 6, 7]), np.stack([ids]), range(5, 8)):
        output = llm.generate(prompt, GREEDY, use_tqdm=False)[0]
        assert output.outputs[0].token_ids == plain
        assert {type(token) for token in output.prompt_token_ids} == {int}
    texts = llm.generate((text for text in ("a", "b", "c")), GREEDY, use_tqdm=False)
    assert [output.prompt for output in texts] == ["a", "b", "c"]


def test_arguments_of_another_kind_are_refused(llm):
    for call, message in (
        (lambda: llm.generate("a", {"n": 1}), "sampling_params of type dict"),
        (lambda: llm.generate(["a"], priority=3), "a list with one whole number"),
        (lambda: llm.generate(["a"], priority=["x"]), "priority='x'"),
        (lambda: llm.chat({"role": "user", "content": "Hi"}), "messages must be a non-empty list"),
        (lambda: llm.stream(None), "accepted: text"),
    ):
        with pytest.raises(RequestError, match=message):
            call()
        assert not llm.engine.has_unfinished_requests()


def test_stop_strings_that_are_refused_leave_nothing_in_the_scheduler(llm):
    with pytest.raises(RequestError, match="stop strings are too long"):
        llm.engine.add_request("a", SamplingParams(stop=["x" * 9000]))
    assert not llm.engine.scheduler.requests
    assert not llm.engine.has_unfinished_requests()


def test_bad_words_that_only_the_tokenizer_knows_are_passed_over(llm, monkeypatch):
    whole = one(llm, seed=5)
    monkeypatch.setattr("octavo.intake.tokenize_bad_words", lambda *_: ((40, 10_000), (10_000,)))
    assert one(llm, seed=5, bad_words=["x"]).token_ids == whole.token_ids


def test_ctrl_c_leaves_nothing_behind(llm, monkeypatch):
    step, calls = llm.engine.step, []

    def interrupted():
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(llm.engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["The quick"] * 3, SamplingParams(max_tokens=200, ignore_eos=True), use_tqdm=False)
    monkeypatch.undo()
    assert not llm.engine.has_unfinished_requests()
    assert one(llm, seed=1).token_ids == one(llm, seed=1).token_ids


def test_one_prompt_of_token_ids_is_one_prompt(llm):
    assert len(llm.generate([5, 6, 7], SamplingParams(max_tokens=2), use_tqdm=False)) == 1
    assert len(llm.generate([[5, 6, 7], "text"], SamplingParams(max_tokens=2), use_tqdm=False)) == 2
    assert llm.generate([], SamplingParams(max_tokens=2), use_tqdm=False) == []


def test_each_prompt_may_have_its_own_params(llm):
    outputs = llm.generate(["a", "b"], [SamplingParams(max_tokens=2), SamplingParams(max_tokens=5)], use_tqdm=False)
    assert [len(o.outputs[0].token_ids) for o in outputs] == [2, 5]
    with pytest.raises(RequestError, match="1 sampling_params for 2 prompts"):
        llm.generate(["a", "b"], [SamplingParams()])
