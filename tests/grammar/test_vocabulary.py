"""Masks over the tokens of every kind of tokenizer, against what prefixes of texts allow."""

from __future__ import annotations

import base64
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from llguidance import LLMatcher

from helpers_llama2c import write_tokenizer_bin
from helpers_text import bpe_metadata, save_bpe, save_spm, spm_metadata, spm_model, write_config
from octavo.grammar.checked import checked_grammar
from octavo.grammar.matcher import MaskMaker, Matcher
from octavo.grammar.vocabulary import Vocabulary
from octavo.structured_outputs import StructuredOutputs
from octavo.text.gguf_tokenizer import tokenizer_from_metadata
from octavo.text.tokenizer import Tokenizer, load_tokenizer

KINDS = ("hf", "spm", "tiktoken", "gguf-bpe", "gguf-spm", "llama2c")
PADDING = 37  # rows of the model that no token has


def save_tiktoken(folder: Path) -> Path:
    """Each byte, a few longer tokens, and special ones at other places than Llama 3's."""
    words = [bytes([i]) for i in range(256)] + [b"es", b"ye", b"yes", b" no", b'":', b"fox"]
    (folder / "tokenizer.model").write_bytes(b"\n".join(base64.b64encode(w) + b" %d" % i for i, w in enumerate(words)))
    special = {"<|begin_of_text|>": 262, "<|end_of_text|>": 263, "<|eot_id|>": 264}
    added = {str(i): {"content": name, "special": True} for name, i in special.items()}
    return write_config(folder, added_tokens_decoder=added, eos_token="<|eot_id|>")


def make(kind: str, folder: Path) -> Tokenizer:
    if kind == "hf":
        return load_tokenizer(save_bpe(folder))
    if kind == "spm":
        return load_tokenizer(save_spm(folder))
    if kind == "tiktoken":
        return load_tokenizer(save_tiktoken(folder))
    if kind == "llama2c":
        spm = sentencepiece.SentencePieceProcessor(model_proto=spm_model())
        return load_tokenizer(write_tokenizer_bin(folder / "tokenizer.bin", spm))
    return tokenizer_from_metadata(bpe_metadata() if kind == "gguf-bpe" else spm_metadata())


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(tokenizer, tokenizer.vocab_size + PADDING)


def begin(vocabulary: Vocabulary, ends: tuple[int, ...], **form: object) -> Matcher:
    wanted = StructuredOutputs(**form)
    grammar = checked_grammar(wanted, vocabulary.specials)
    start = LLMatcher(vocabulary.library, grammar, log_level=0)
    assert not start.is_error(), start.get_error()
    matcher = Matcher(wanted, start, vocabulary.bits_of(ends) if ends else None)
    MaskMaker(vocabulary).update([matcher])
    return matcher


def allowed(matcher: Matcher, vocabulary: Vocabulary) -> list[int]:
    assert len(matcher.mask) == vocabulary.mask_bytes
    bits = np.unpackbits(np.frombuffer(matcher.mask, np.uint8), bitorder="little")
    return np.flatnonzero(bits).tolist()


def walk(matcher: Matcher, vocabulary: Vocabulary, tokenizer: Tokenizer, end: int, rng: random.Random) -> bytes:
    """The bytes of random allowed tokens up to the end."""
    maker, written = MaskMaker(vocabulary), b""
    for _ in range(400):
        tokens = allowed(matcher, vocabulary)
        token = end if end in tokens and (len(tokens) == 1 or rng.random() < 0.3) else rng.choice(tokens)
        if token == end:
            return written
        assert token not in tokenizer.special_ids
        assert tokenizer.token_bytes(token), "a token that writes nothing leads nowhere"
        written += tokenizer.token_bytes(token)
        matcher.take(token)
        maker.update([matcher])
        assert not matcher.error
    raise AssertionError(f"no end after {written!r}")


def special_of(tokenizer: Tokenizer) -> int:
    return max(tokenizer.special_ids)


@pytest.mark.parametrize("seed", range(6))
def test_random_walks_end_in_what_the_form_says(tokenizer, vocabulary, seed):
    rng, end = random.Random(seed), special_of(tokenizer)
    written = walk(begin(vocabulary, (end,), regex="[a-dü]{2,9}(-\\d+)?"), vocabulary, tokenizer, end, rng)
    assert re.fullmatch("[a-dü]{2,9}(-[0-9]+)?", written.decode())
    schema = {"type": "object", "properties": {"fox": {"enum": ["yes", " no", 3]}}, "required": ["fox"]}
    schema["additionalProperties"] = False
    text = walk(begin(vocabulary, (end,), json=schema), vocabulary, tokenizer, end, rng)
    assert json.loads(text)["fox"] in ["yes", " no", 3]


def test_the_mask_is_that_of_prefixes(tokenizer, vocabulary):
    """Where only one byte can follow, it may name one token of those that are possible: the tokenizer's own."""
    choices, end = ["yes it is", "yes, I do", "no", "no way", "né", "n😀"], special_of(tokenizer)
    texts = [choice.encode() for choice in choices]
    tokens = {i: tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size) if i not in tokenizer.special_ids}
    for goal in texts:
        matcher, written, maker = begin(vocabulary, (end,), choice=choices), b"", MaskMaker(vocabulary)
        while written != goal:
            follows = {text[len(written)] for text in texts if text.startswith(written) and text != written}
            possible = {i for i, token in tokens.items() if token and any(t.startswith(written + token) for t in texts)}
            found = set(allowed(matcher, vocabulary))
            assert (end in found) == (written in texts)
            found.discard(end)
            assert found == possible or (len(follows) == 1 and found < possible)
            token = next(i for i in sorted(found) if goal.startswith(written + tokens[i]))
            matcher.take(token)
            maker.update([matcher])
            written += tokens[token]
        assert end in allowed(matcher, vocabulary)


def test_without_end_tokens_a_grammar_goes_on_while_it_can_and_is_then_over(tokenizer, vocabulary):
    maker = MaskMaker(vocabulary)
    matcher = begin(vocabulary, (), regex="a{1,2}")
    letter = next(i for i in allowed(matcher, vocabulary) if tokenizer.token_bytes(i) == b"a")
    matcher.take(letter)
    maker.update([matcher])
    assert letter in allowed(matcher, vocabulary)
    assert not matcher.over
    matcher.take(letter)
    maker.update([matcher])
    assert matcher.over
    assert allowed(matcher, vocabulary) == []


def test_a_token_that_was_not_allowed_is_an_error_not_a_wrong_mask(tokenizer, vocabulary):
    matcher = begin(vocabulary, (special_of(tokenizer),), choice=["yes"])
    other = next(i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == b"b")
    matcher.take(other)
    MaskMaker(vocabulary).update([matcher])
    assert "cannot go on after what was written" in matcher.error


def test_many_masks_at_once_are_those_of_each_alone(tokenizer, vocabulary):
    end = special_of(tokenizer)
    forms = [{"regex": f"[a-{chr(98 + i)}]+"} for i in range(9)]
    together, alone = ([begin(vocabulary, (end,), **form) for form in forms] for _ in range(2))
    MaskMaker(vocabulary).update(together)
    assert [matcher.mask for matcher in together] == [matcher.mask for matcher in alone]
    assert len({matcher.mask for matcher in alone}) == len(forms)


def test_special_tokens_are_named_by_a_grammar_and_never_text(tokenizer, vocabulary):
    end = special_of(tokenizer)
    name = tokenizer.id_to_token(end)
    spelled = begin(vocabulary, (), choice=[name])
    assert end not in allowed(spelled, vocabulary)
    if re.fullmatch(r"<[^<> ]+>", name):
        assert allowed(begin(vocabulary, (), grammar=f"start: {name}"), vocabulary) == [end]


def test_a_model_with_fewer_rows_than_the_tokenizer_has_tokens(tokenizer):
    small = Vocabulary(tokenizer, tokenizer.vocab_size - 5)
    matcher = begin(small, (3,), regex=r"(.|\n)+")
    assert max(allowed(matcher, small)) < small.size
