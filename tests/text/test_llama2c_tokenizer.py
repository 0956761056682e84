"""``tokenizer.bin`` against the SentencePiece model that it was made of."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
import sentencepiece
from hypothesis import given

from helpers_llama2c import header, write_tokenizer_bin
from helpers_models import TINY
from helpers_text import TEXTS, spm_model
from octavo.errors import ModelError
from octavo.text.tokenizer import Tokenizer, has_tokenizer, load_tokenizer

ORACLE = sentencepiece.SentencePieceProcessor(model_proto=spm_model())
NAMES = ("<s>", "</s>", "<unk>")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer_bin(tmp_path_factory.mktemp("tokenizer") / "tokenizer.bin", ORACLE)


@pytest.fixture(scope="module")
def ours(path: Path) -> Tokenizer:
    return load_tokenizer(path)


def test_vocabulary(ours: Tokenizer) -> None:
    assert ours.vocab_size == ORACLE.get_piece_size()
    assert [ours.id_to_token(i) for i in range(600)] == [ORACLE.id_to_piece(i) for i in range(600)]
    assert (ours.bos_token_id, ours.eos_token_id) == (1, 2)
    assert ours.chat_template is None


@given(text=TEXTS)
def test_encode_and_decode_are_sentencepieces(ours: Tokenizer, text: str) -> None:
    if not any(name in text for name in NAMES):
        assert ours.encode(text) == [1, *ORACLE.encode(text)]
        assert ours.decode(ours.encode(text)) == ORACLE.decode(ORACLE.encode(text))


def test_it_is_found_beside_the_checkpoint(path: Path) -> None:
    model = path.parent / "model.bin"
    model.write_bytes(header(TINY["llama"], 1, False, 0))
    assert has_tokenizer(model)
    assert load_tokenizer(model).vocab_size == 600
    assert load_tokenizer(path.parent).vocab_size == 600


def test_a_checkpoint_alone_has_none(tmp_path: Path) -> None:
    model = tmp_path / "model.bin"
    model.write_bytes(header(TINY["llama"], 0, True, 0).ljust(64, b"\0"))
    assert not has_tokenizer(model)
    with pytest.raises(ModelError, match=r"no tokenizer in this folder; accepted: .*tokenizer.bin"):
        load_tokenizer(model)


def piece(text: bytes, score: float = 0.0, length: int | None = None) -> bytes:
    return struct.pack("<fi", score, len(text) if length is None else length) + text


SPECIAL = piece(b"<unk>") + piece(b"\n<s>\n") + piece(b"\n</s>\n")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "0 bytes are too few"),
        (bytes(20), "20 bytes are too few"),
        (SPECIAL + b"abc", "it ends within piece 3"),
        (SPECIAL + piece(b"abc", length=4), "piece 3 claims 4 bytes"),
        (SPECIAL + piece(b"abc", length=-1), "piece 3 claims -1 bytes"),
        (SPECIAL + piece(b"x" * 9), "piece 3 claims 9 bytes"),
        (SPECIAL + piece(b"\xff"), "codec can't decode"),
    ],
)
def test_damage_is_named(tmp_path: Path, data: bytes, problem: str) -> None:
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(struct.pack("<i", 7) + data if data.startswith(SPECIAL) else data)
    with pytest.raises(ModelError, match=problem) as error:
        load_tokenizer(path)
    assert "\n" not in str(error.value)


def test_random_damage_raises_nothing_else(path: Path, tmp_path: Path) -> None:
    data, random = path.read_bytes(), Random(1)
    broken = tmp_path / "tokenizer.bin"
    for _ in range(60):
        changed = bytearray(data[: random.choice([len(data), random.randrange(9, len(data))])])
        for _ in range(random.randrange(1, 4)):
            changed[random.randrange(len(changed))] = random.randrange(256)
        broken.write_bytes(changed)
        with suppress(ModelError):
            assert load_tokenizer(broken).decode([0, 1, 2, 300, 599]) is not None
