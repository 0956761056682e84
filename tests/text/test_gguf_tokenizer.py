from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import given
from tokenizers import pre_tokenizers

from helpers_gguf import write_gguf
from helpers_text import CORPUS, TEXTS, bpe_metadata, byte_level_bpe, spm_metadata, spm_model
from octavo.errors import ModelError
from octavo.text.gguf_tokenizer import tokenizer_from_metadata
from octavo.text.tokenizer import has_tokenizer, load_tokenizer

SPM = sentencepiece.SentencePieceProcessor(model_proto=spm_model())


BPE = tokenizer_from_metadata(bpe_metadata())
LLAMA = tokenizer_from_metadata(spm_metadata())


@given(TEXTS)
def test_byte_level_bpe_is_the_tokenizer_that_it_was_written_from(text: str) -> None:
    ids = byte_level_bpe().encode(text, add_special_tokens=False).ids
    assert BPE.encode(text) == ids
    assert BPE.decode(ids) == byte_level_bpe().decode(ids)


@given(TEXTS)
def test_llama_merges_by_scores_as_sentencepiece(text: str) -> None:
    if not any(token in text for token in ("<s>", "</s>", "<unk>")):
        ids = SPM.encode(text)
        assert LLAMA.encode(text) == [1, *ids]
        assert LLAMA.decode(ids) == SPM.decode(ids)


def test_llama_conventions() -> None:
    """As in llama.cpp: BOS, and the space prefix after every special token."""
    assert LLAMA.encode("<s>the", False) == [1, *SPM.encode("the")]
    bare = tokenizer_from_metadata(spm_metadata(add_space_prefix=False, add_bos_token=False, add_eos_token=True))
    assert bare.encode(" the") == [*SPM.encode("the"), 2]


def test_llama_with_empty_and_repeated_tokens() -> None:
    tokens = spm_metadata()["tokenizer.ggml.tokens"] + ["", "▁the", "", "<extra>", "Hello"]
    size = len(tokens)
    kinds = [*spm_metadata()["tokenizer.ggml.token_type"], 1, 1, 1, 3, 4]
    scores = [*spm_metadata()["tokenizer.ggml.scores"], 0.0, 0.0, 0.0, 0.0, 0.0]
    ours = tokenizer_from_metadata(spm_metadata(tokens=tokens, token_type=kinds, scores=scores))
    assert ours.vocab_size == size
    assert ours.encode("the<extra>", False) == [*SPM.encode("the"), size - 2]
    assert size - 1 in ours.encode("say Hello", False)


PRE_TOKENIZED = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
}


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZED))
@given(text=TEXTS)
def test_words_are_cut_as_the_models_own_files_cut_them(name: str, text: str) -> None:
    backend = tokenizers.Tokenizer.from_str(byte_level_bpe().to_str())
    backend.pre_tokenizer = PRE_TOKENIZED[name]
    ours = tokenizer_from_metadata(bpe_metadata(pre=name))
    assert ours.encode(text) == backend.encode(text, add_special_tokens=False).ids


def words(name: str, text: str) -> list[str]:
    ours = tokenizer_from_metadata(bpe_metadata(pre=name))
    parts = ours._backend.pre_tokenizer.pre_tokenize_str(text)  # type: ignore[attr-defined]
    return [text[start:end] for _, (start, end) in parts]


def test_words_of_each_kind() -> None:
    """Numbers, contractions, case and punctuation: what tells the kinds apart."""
    text = "I'LL pay $12345/day fooBar\n\n ok"
    assert words("llama-bpe", text) == [
        "I",
        "'LL",
        " pay",
        " $",
        "123",
        "45",
        "/day",
        " fooBar",
        "\n\n",
        " ok",
    ]
    assert words("qwen2", text) == ["I", "'LL", " pay", " $", *"12345", "/day", " fooBar", "\n\n", " ok"]
    assert words("tekken", text) == ["I", "'LL", " pay", " $", *"12345", "/day", " foo", "Bar", "\n\n", " ok"]
    assert words("gpt-2", text)[:7] == ["I", "'", "LL", " pay", " $", "12345", "/"]
    assert words("smollm", text)[4:10] == [" $", *"12345"]
    assert words("default", text)[5:8] == ["$", "123", "45"]


def test_bos_default_hangs_on_the_pre_tokenizer() -> None:
    assert tokenizer_from_metadata(bpe_metadata(pre="llama-bpe")).encode("a")[0] == 0
    assert tokenizer_from_metadata(bpe_metadata(pre="llama-bpe", add_bos_token=False)).encode("a") == BPE.encode("a")


def test_ignore_merges_takes_a_whole_word() -> None:
    tokens = [*bpe_metadata()["tokenizer.ggml.tokens"], "zqxj"]
    kinds = [*bpe_metadata()["tokenizer.ggml.token_type"], 1]
    for pre, whole in (("llama-bpe", True), ("qwen2", False)):
        ours = tokenizer_from_metadata(bpe_metadata(pre=pre, tokens=tokens, token_type=kinds))
        assert (ours.encode("zqxj", False) == [len(tokens) - 1]) is whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "bert"}, "gpt2, llama"),
        ({"model": 5}, "type str"),
        ({"model": None}, "gpt2, llama"),
        ({"pre": "llama-bqe"}, "did you mean 'llama-bpe'"),
        ({"tokens": None}, "tokens is missing"),
        ({"tokens": []}, "tokens is missing"),
        ({"tokens": [1, 2]}, "list of str"),
        ({"merges": None}, "merges is missing"),
        ({"merges": ["ab"]}, "two tokens with a space"),
        ({"merges": ["no such"]}, "damaged tokenizer"),
        ({"token_type": [1]}, "one a token"),
        ({"bos_token_id": 10**6}, "below the vocabulary size"),
        ({"eos_token_id": -1}, "below the vocabulary size"),
        ({"add_bos_token": "yes"}, "type bool"),
    ],
)
def test_damaged_metadata_gives_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        tokenizer_from_metadata(bpe_metadata(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", [{"scores": [1.0]}, {"token_type": [77] * SPM.get_piece_size()}, {"scores": ["a"]}])
def test_damaged_llama_metadata_gives_one_line(changes: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        tokenizer_from_metadata(spm_metadata(**changes))


def test_a_file(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", {**bpe_metadata(), "tokenizer.chat_template": "{{ 1 }}"}, {})
    for place in (path, tmp_path):
        ours = load_tokenizer(place)
        assert ours.encode(CORPUS[0]) == BPE.encode(CORPUS[0])
        assert ours.chat_template == "{{ 1 }}"
        assert has_tokenizer(place)


def test_a_file_without_tokenizer(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", {}, {})
    assert not has_tokenizer(path)
    with pytest.raises(ModelError, match=r"model\.gguf: .*accepted: "):
        load_tokenizer(path)
