"""tiktoken's ``tokenizer.model`` against a plain merge loop by ranks, and against Llama 3's known numbers."""

from __future__ import annotations

import base64
import itertools
import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given

from helpers_text import CORPUS, TEXTS
from octavo.errors import ModelError
from octavo.text.pre_tokenizers import pre_tokenizer
from octavo.text.tiktoken_tokenizer import LLAMA3_TOKENS, llama3_special_tokens
from octavo.text.tokenizer import Tokenizer, load_tokenizer

WORDS = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pre_tokenizer("llama3").patterns[0]), "isolated")
SPECIAL = {"<|begin_of_text|>": 400, "<|end_of_text|>": 401, "<|eot_id|>": 402}


def merge(word: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """Merge the leftmost of the pairs with the lowest rank, until there is none."""
    parts = [word[i : i + 1] for i in range(len(word))]
    while True:
        pairs = [(ranks.get(a + b, 1 << 30), i) for i, (a, b) in enumerate(itertools.pairwise(parts))]
        if not pairs or (best := min(pairs))[0] == 1 << 30:
            return parts
        parts[best[1] : best[1] + 2] = [parts[best[1]] + parts[best[1] + 1]]


def learn(size: int) -> dict[bytes, int]:
    """A byte-pair vocabulary of ``size`` tokens, from the corpus."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    texts = [word.encode() for text in CORPUS for word, _ in WORDS.pre_tokenize_str(text)]
    while len(ranks) < size:
        count: dict[bytes, int] = {}
        for word in texts:
            parts = merge(word, ranks)
            for a, b in itertools.pairwise(parts):
                count[a + b] = count.get(a + b, 0) + 1
        best = sorted((pair for pair in count if pair not in ranks), key=lambda pair: (-count[pair], pair))
        for pair in best[: min(24, size - len(ranks))]:
            ranks[pair] = len(ranks)
    return ranks


RANKS = learn(400)


def write(path: Path, ranks: dict[bytes, int]) -> Path:
    lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()]
    path.write_bytes(b"".join(lines))
    return path


def write_config(folder: Path) -> None:
    added = {str(i): {"content": text, "special": True} for text, i in SPECIAL.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tiktoken")
    write(folder / "tokenizer.model", RANKS)
    write_config(folder)
    return load_tokenizer(folder)


@given(text=TEXTS)
def test_encode_is_the_merge_loop(ours: Tokenizer, text: str) -> None:
    words = [word.encode() for word, _ in WORDS.pre_tokenize_str(text)]
    expected = [RANKS[part] for word in words for part in ([word] if word in RANKS else merge(word, RANKS))]
    if not any(name in text for name in SPECIAL):
        assert ours.encode(text) == [400, *expected]
        assert ours.decode(ours.encode(text)) == text


def test_special_tokens(ours: Tokenizer) -> None:
    assert ours.encode("a<|eot_id|>b", add_special_tokens=False) == [97, 402, 98]
    assert (ours.bos_token_id, ours.eos_token_id, ours.vocab_size) == (400, 401, 403)
    assert ours.special_ids >= {400, 401, 402}


def test_llama3s_own_special_tokens(tmp_path: Path) -> None:
    """Numbers from Llama 3.1's published tokenizer."""
    ranks = {**{bytes([byte]): byte for byte in range(256)}}
    for number in range(256, LLAMA3_TOKENS):
        ranks[b"\xff" + number.to_bytes(3, "big")] = number
    tokenizer = load_tokenizer(write(tmp_path / "tokenizer.model", ranks))
    assert tokenizer.vocab_size == 128256
    for text, token_id in {
        "<|begin_of_text|>": 128000,
        "<|end_of_text|>": 128001,
        "<|reserved_special_token_0|>": 128002,
        "<|finetune_right_pad_id|>": 128004,
        "<|reserved_special_token_2|>": 128005,
        "<|start_header_id|>": 128006,
        "<|end_header_id|>": 128007,
        "<|eom_id|>": 128008,
        "<|eot_id|>": 128009,
        "<|python_tag|>": 128010,
        "<|reserved_special_token_247|>": 128255,
    }.items():
        assert tokenizer.token_to_id(text) == token_id
    assert len(set(llama3_special_tokens())) == 256
    assert tokenizer.encode("hi") == [128000, ord("h"), ord("i")]


def test_a_vocabulary_without_known_special_tokens(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"a tiktoken vocabulary of 400 tokens are not known; accepted: Llama 3's"):
        load_tokenizer(write(tmp_path / "tokenizer.model", RANKS))


def test_special_tokens_at_other_ids(tmp_path: Path) -> None:
    write(tmp_path / "tokenizer.model", dict(list(RANKS.items())[:-1]))
    write_config(tmp_path)
    with pytest.raises(ModelError, match="cannot have the id 400"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("line", "replacement", "reason"),
    [
        (0, b"YQ== 0", "line 98 is damaged"),
        (3, b"Aw== 4", "line 4 is damaged; accepted: rank 3"),
        (3, b"Aw==", "line 4 is damaged; accepted: a token in base64"),
        (3, b"Aw= 3", "line 4 is damaged"),
        (3, b" 3", "line 4 is damaged"),
        (3, b"////" * 200 + b" 3", "line 4 is damaged"),
        (3, b"\xff\xfe 3", "line 4 is damaged"),
        (399, b"", "line 400 is damaged"),
    ],
)
def test_damage_is_named(tmp_path: Path, line: int, replacement: bytes, reason: str) -> None:
    path = write(tmp_path / "tokenizer.model", RANKS)
    write_config(tmp_path)
    lines = path.read_bytes().splitlines()
    lines[line] = replacement
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(ModelError, match=reason) as error:
        load_tokenizer(path)
    assert "\n" not in str(error.value)


def test_bytes_without_a_token(tmp_path: Path) -> None:
    ranks = {bytes([byte]): byte for byte in range(200)}
    with pytest.raises(ModelError, match="56 of 256 bytes have no token, the first is 200"):
        load_tokenizer(write(tmp_path / "tokenizer.model", ranks))
