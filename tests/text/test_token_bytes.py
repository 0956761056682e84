from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, pre_tokenizers

from octavo.text.token_bytes import BYTE_OF_CHAR, byte_level_bytes, sentencepiece_bytes, spaced_word_bytes


def test_alphabet_is_the_librarys() -> None:
    assert set(BYTE_OF_CHAR) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(BYTE_OF_CHAR.values()) == list(range(256))


@given(st.text())
def test_byte_level_inverts_the_librarys_spelling(text: str) -> None:
    spelled = "".join(word for word, _ in pre_tokenizers.ByteLevel(False, use_regex=False).pre_tokenize_str(text))
    assert byte_level_bytes(spelled) == text.encode()


@given(st.text(max_size=4))
def test_byte_level_of_any_token_is_the_librarys(token: str) -> None:
    assert byte_level_bytes(token).decode("utf-8", "replace") == decoders.ByteLevel().decode([token])


def test_sentencepiece() -> None:
    assert sentencepiece_bytes("▁the▁▁") == b" the  "
    assert sentencepiece_bytes("<0x0A>") == b"\n"
    assert sentencepiece_bytes("<0xfF>") == b"\xff"
    assert sentencepiece_bytes("<0x0A>x") == b"<0x0A>x"


def test_spaced_words() -> None:
    assert spaced_word_bytes("é") == b" \xc3\xa9"
