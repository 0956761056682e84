from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers
from transformers import AutoTokenizer

from helpers_text import CORPUS, TEXTS, byte_level_bpe, save_bpe, write_config
from octavo.errors import ModelError, RequestError
from octavo.text.hf_tokenizer import HFTokenizer
from octavo.text.tokenizer import load_tokenizer
from octavo.text.tokenizer_config import TokenizerConfig

CONFIG = TokenizerConfig(bos_token="<s>", eos_token="</s>", added_tokens={})


def wrap(backend: tokenizers.Tokenizer, config: TokenizerConfig = CONFIG) -> HFTokenizer:
    return HFTokenizer(tokenizers.Tokenizer.from_str(backend.to_str()), config)


BPE = wrap(byte_level_bpe())


@given(TEXTS)
def test_encode_is_the_librarys(text: str) -> None:
    assert BPE.encode(text) == byte_level_bpe().encode(text).ids
    assert BPE.encode(text, add_special_tokens=False) == byte_level_bpe().encode(text, add_special_tokens=False).ids


@given(st.lists(st.integers(0, byte_level_bpe().get_vocab_size() + 3), max_size=30), st.booleans())
def test_decode_of_any_ids_is_the_librarys(ids: list[int], skip: bool) -> None:
    assert BPE.decode(ids, skip) == byte_level_bpe().decode(ids, skip_special_tokens=skip)


@given(TEXTS)
def test_decode_inverts_encode(text: str) -> None:
    assert BPE.decode(BPE.encode(text, add_special_tokens=False), skip_special_tokens=False) == text


def sentencepiece_like(strip: bool) -> tokenizers.Tokenizer:
    """Llama 2's tokenizer.json: BPE over "▁" words with byte tokens."""
    words = ["▁", "▁the", "the", "▁dog", "é", "▁▁", "<unk>", *(f"<0x{b:02X}>" for b in range(256))]
    backend = tokenizers.Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    backend.add_special_tokens(["<s>", "</s>"])
    return backend


@pytest.mark.parametrize("strip", [True, False])
@given(
    words=st.lists(st.sampled_from(["▁", "▁the", "the", "▁dog", "é", "▁▁", "<s>", "😀", "ß", "\n"])),
    skip=st.booleans(),
)
def test_decode_of_sentencepiece_like_ids_is_the_librarys(strip: bool, words: list[str], skip: bool) -> None:
    backend = sentencepiece_like(strip)
    spelled = [[w] if backend.token_to_id(w) is not None else [f"<0x{b:02X}>" for b in w.encode()] for w in words]
    ids = [backend.token_to_id(token) for word in spelled for token in word]
    assert wrap(backend).decode(ids, skip) == backend.decode(ids, skip_special_tokens=skip)


def test_decode_of_bytes_that_are_no_text_keeps_the_text_around_them() -> None:
    backend = sentencepiece_like(strip=True)
    ids = [backend.token_to_id(f"<0x{b:02X}>") for b in (*"€".encode(), 0xE2, 0x82)]
    assert wrap(backend).decode(ids) == "€\ufffd"


def test_metaspace_decoder() -> None:
    backend = tokenizers.Tokenizer(models.BPE({"▁a": 0, "b": 1, "▁c": 2}, []))
    for scheme in ("always", "never"):
        backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
        assert wrap(backend).decode([0, 1, 2]) == backend.decode([0, 1, 2])


def test_no_decoder_joins_words_with_spaces() -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1, "<s>": 2}, unk_token="<s>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    assert wrap(backend).decode([0, 1, 0]) == backend.decode([0, 1, 0]) == "a b a"


def test_other_decoders_are_refused() -> None:
    backend = tokenizers.Tokenizer(models.BPE({"a": 0}, []))
    for decoder in (decoders.WordPiece(), decoders.Sequence([decoders.Replace("x", "y"), decoders.Fuse()])):
        backend.decoder = decoder
        with pytest.raises(ModelError, match="accepted: ByteLevel"):
            wrap(backend)


def test_ids_out_of_range_write_nothing() -> None:
    assert BPE.decode([-1, 10**6, 2**40]) == ""
    assert BPE.id_to_token(-1) is None
    assert BPE.token_to_id("no such token") is None


def test_special_tokens() -> None:
    assert (BPE.bos_token_id, BPE.eos_token_id) == (0, 1)
    assert BPE.special_ids == {0, 1, 2, 3}
    assert BPE.vocab_size == byte_level_bpe().get_vocab_size()
    assert BPE.token_bytes(BPE.encode("é", False)[0]) in (b"\xc3", "é".encode())


@pytest.mark.parametrize("text", ["half \ud83d", 5, None, b"bytes"])
def test_bad_text_is_refused(text: object) -> None:
    with pytest.raises(RequestError, match="accepted:"):
        BPE.encode(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"add_bos_token": True},
        {"add_bos_token": False},
        {"add_bos_token": True, "add_eos_token": True},
        {"add_eos_token": True},
    ],
)
def test_folder_equals_transformers(tmp_path: Path, config: dict[str, bool]) -> None:
    save_bpe(tmp_path, tokenizer_class="PreTrainedTokenizerFast", **config)
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in [*CORPUS[:6], "", "<|im_start|>user\nhi<|im_end|>\n"]:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text), skip_special_tokens=True)


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_str(byte_level_bpe().to_str())
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path)
    assert ours.encode("a") == byte_level_bpe().encode("a").ids
    assert ours.decode(ours.encode(CORPUS[0])) == CORPUS[0]


def test_tokens_of_the_config_are_added_at_their_ids(tmp_path: Path) -> None:
    size = byte_level_bpe().get_vocab_size()
    added = {str(size): {"content": "<extra>", "special": True}}
    save_bpe(tmp_path, added_tokens_decoder=added)
    ours = load_tokenizer(tmp_path)
    assert ours.encode("a<extra>", add_special_tokens=False)[-1] == size
    assert size in ours.special_ids
    write_config(tmp_path, added_tokens_decoder={str(size + 5): {"content": "<extra>", "special": True}})
    with pytest.raises(ModelError, match="tokenizer_config"):
        load_tokenizer(tmp_path)


def test_damaged_files_give_one_line(tmp_path: Path) -> None:
    good = json.loads(byte_level_bpe().to_str())
    no_word = {**good, "model": {**good["model"], "merges": [["no", "word"]]}}
    no_token = {**good, "post_processor": {**good["post_processor"], "special_tokens": {}}}
    cut = byte_level_bpe().to_str()[:5000]
    for text in (
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"model": 5}',
        "[" * 100_000,
        json.dumps(no_word),
        json.dumps(no_token),
        cut,
        "\x00\xff",
    ):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(ModelError, match=r"tokenizer\.json: damaged") as caught:
            load_tokenizer(tmp_path)
        assert "\n" not in str(caught.value)


def test_text_outside_a_vocabulary_without_unknown_token_is_refused() -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="<unk>"))
    with pytest.raises(RequestError, match="cannot encode this text"):
        wrap(backend).encode("b")
