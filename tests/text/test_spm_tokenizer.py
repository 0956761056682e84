from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaTokenizer

from helpers_text import CORPUS, TEXTS, save_spm, spm_model
from octavo.errors import ModelError
from octavo.text.spm_tokenizer import SentencePieceTokenizer
from octavo.text.tokenizer import load_tokenizer
from octavo.text.tokenizer_config import AddedToken, TokenizerConfig

ORACLE = sentencepiece.SentencePieceProcessor(model_proto=spm_model())
BOS, EOS, UNK = 1, 2, 0


def tokenizer(**config: object) -> SentencePieceTokenizer:
    settings = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "added_tokens": {}, **config}
    return SentencePieceTokenizer(spm_model(), TokenizerConfig(**settings))  # type: ignore[arg-type]


OURS = tokenizer()


@given(TEXTS)
def test_encode_is_sentencepieces(text: str) -> None:
    if not any(token in text for token in ("<s>", "</s>", "<unk>")):
        assert OURS.encode(text) == [BOS, *ORACLE.encode(text)]


@given(TEXTS)
def test_decode_is_sentencepieces(text: str) -> None:
    ids = ORACLE.encode(text)
    assert OURS.decode(ids) == ORACLE.decode(ids)


@given(TEXTS)
def test_decode_inverts_encode(text: str) -> None:
    if "▁" not in text and not any(token in text for token in ("<s>", "</s>", "<unk>")):
        assert OURS.decode(OURS.encode(text)) == text


@given(
    st.lists(st.sampled_from(["<s>", "</s>", "Hello", " world", "  ", "é", "😀", "\n", "<unk>"]), max_size=8).map(
        "".join
    )
)
def test_special_tokens_in_the_text_are_as_in_transformers(text: str) -> None:
    if text.startswith(" "):
        return  # Transformers puts no dummy prefix there; SentencePiece does, and so do we (tested above)
    assert OURS.encode(text) == THEIRS.encode(text)
    assert OURS.decode(OURS.encode(text)) == THEIRS.decode(THEIRS.encode(text), skip_special_tokens=True)


def llama_tokenizer() -> LlamaTokenizer:
    """Transformers' own conversion of the same vocabulary: merges in the order of their scores."""
    pieces = [ORACLE.id_to_piece(i) for i in range(ORACLE.get_piece_size())]
    ids = {piece: i for i, piece in enumerate(pieces)}
    splits = [(p, p[:n], p[n:]) for p in pieces for n in range(1, len(p)) if p[:n] in ids and p[n:] in ids]
    merges = [(a, b) for p, a, b in sorted(splits, key=lambda s: (-ORACLE.get_score(ids[s[0]]), ids[s[1]], ids[s[2]]))]
    result = LlamaTokenizer(vocab=ids, merges=merges, legacy=False, add_bos_token=True)
    result.add_special_tokens({"unk_token": "<unk>"})
    return result


THEIRS = llama_tokenizer()


def test_legacy_puts_the_dummy_prefix_after_special_tokens() -> None:
    legacy = tokenizer(legacy=True)
    assert legacy.encode("<s>the", False) == [BOS, *ORACLE.encode("the")]
    assert OURS.encode("<s>the", False) != legacy.encode("<s>the", False)
    assert OURS.decode(OURS.encode("<s>the", False), skip_special_tokens=False) == "<s>the"


def test_no_dummy_prefix_when_the_config_says_so() -> None:
    bare = tokenizer(add_prefix_space=False)
    assert bare.encode(" the", False) == ORACLE.encode("the")
    assert bare.decode(bare.encode(" the")) == " the"


@given(TEXTS)
def test_a_model_without_dummy_prefix(text: str) -> None:
    proto = spm_model(add_dummy_prefix=False)
    ours = SentencePieceTokenizer(proto, TokenizerConfig(added_tokens={}))
    if not any(token in text for token in ("<s>", "</s>", "<unk>")):
        assert ours.encode(text) == sentencepiece.SentencePieceProcessor(model_proto=proto).encode(text)


def test_added_tokens_beyond_the_model() -> None:
    size = ORACLE.get_piece_size()
    added = {
        size: AddedToken("<|im_end|>", special=True, rstrip=True, lstrip=True),
        size + 1: AddedToken("<tool>", False),
    }
    ours = tokenizer(added_tokens=added)
    assert ours.vocab_size == size + 2
    assert ours.encode("a <|im_end|>  \n<tool>", False) == [*ORACLE.encode("a"), size, size + 1]
    assert ours.decode([size, size + 1]) == "<tool>"
    assert ours.token_to_id("<tool>") == size + 1
    assert ours.id_to_token(size + 2) is None


def test_special_ids_and_lookups() -> None:
    assert OURS.special_ids == {UNK, BOS, EOS}
    assert OURS.token_to_id("▁the") == ORACLE.piece_to_id("▁the")
    assert OURS.token_to_id("no such piece") is None
    assert OURS.decode([-1, 10**9]) == ""
    assert OURS.token_bytes(OURS.token_to_id("<0x0A>")) == b"\n"  # type: ignore[arg-type]


def test_folder_and_bare_file(tmp_path: Path) -> None:
    save_spm(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.model"):
        ours = load_tokenizer(path)
        assert ours.encode(CORPUS[0]) == [BOS, *ORACLE.encode(CORPUS[0])]
        assert (ours.bos_token, ours.eos_token, ours.eos_token_id) == ("<s>", "</s>", EOS)


def test_config_of_the_folder(tmp_path: Path) -> None:
    added = {str(ORACLE.get_piece_size()): {"content": "<|im_end|>", "special": True}}
    save_spm(tmp_path, add_bos_token=False, add_eos_token=True, eos_token="<|im_end|>", added_tokens_decoder=added)
    ours = load_tokenizer(tmp_path)
    assert ours.encode("the") == [*ORACLE.encode("the"), ORACLE.get_piece_size()]


def test_long_white_space_before_a_special_token_takes_linear_time() -> None:
    ours = tokenizer(added_tokens={ORACLE.get_piece_size(): AddedToken("<mask>", True, lstrip=True, rstrip=True)})
    assert len(ours.encode(" " * 200_000)) > 1
    assert ours.encode("a" + " " * 200_000 + "<mask>", False)[-1] == ORACLE.get_piece_size()


@pytest.mark.parametrize("length", [0, 1, 100, 5000])
def test_damaged_files_give_one_line(tmp_path: Path, length: int) -> None:
    for content in (spm_model()[:length], b"IQ== 0\nIg== 1\n", b"\xff" * length):
        (tmp_path / "tokenizer.model").write_bytes(content)
        with pytest.raises(ModelError, match="damaged"):
            load_tokenizer(tmp_path)


def test_any_damage_is_reported_or_harmless(tmp_path: Path) -> None:
    random = Random(0)
    for _ in range(300):
        damaged = bytearray(spm_model())
        for _ in range(random.randint(1, 4)):
            damaged[random.choice([random.randrange(len(damaged)), -1 - random.randrange(100)])] = random.randrange(256)
        (tmp_path / "tokenizer.model").write_bytes(damaged)
        with suppress(ModelError):
            ours = load_tokenizer(tmp_path)
            assert isinstance(ours.decode([*ours.encode("Hello é😀 <s> 12"), *range(700)]), str)
