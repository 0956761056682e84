from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers_text import TEXTS, byte_level_bpe, spm_model
from octavo.text.detokenizer import IncrementalDetokenizer
from octavo.text.hf_tokenizer import HFTokenizer
from octavo.text.spm_tokenizer import SentencePieceTokenizer
from octavo.text.tokenizer import Tokenizer
from octavo.text.tokenizer_config import TokenizerConfig

CONFIG = TokenizerConfig(bos_token="<s>", eos_token="</s>", added_tokens={})
BPE: Tokenizer = HFTokenizer(byte_level_bpe(), CONFIG)
SPM: Tokenizer = SentencePieceTokenizer(spm_model(), CONFIG)
BOTH = pytest.mark.parametrize("tokenizer", [BPE, SPM], ids=["bpe", "sentencepiece"])


def stream(tokenizer: Tokenizer, ids: list[int], cuts: list[int], prompt: list[int], skip: bool) -> list[str]:
    """Pieces when ``ids`` come in the groups that ``cuts`` give, one list of each length after the other."""
    detokenizer = IncrementalDetokenizer(tokenizer, prompt, skip_special_tokens=skip)
    pieces, start = [], 0
    for cut in [*cuts, *[1] * len(ids)]:
        pieces.append(detokenizer.append(ids[start : start + cut]))
        start += cut
    return [*pieces, detokenizer.finish()]


CUTS = st.lists(st.integers(0, 5), max_size=10)


@BOTH
@given(ids=st.lists(st.integers(0, 620), max_size=30), cuts=CUTS, skip=st.booleans())
def test_pieces_of_any_ids_join_to_the_decoded_text(
    tokenizer: Tokenizer, ids: list[int], cuts: list[int], skip: bool
) -> None:
    assert "".join(stream(tokenizer, ids, cuts, [], skip)) == tokenizer.decode(ids, skip)


@BOTH
@given(text=TEXTS, cuts=CUTS)
def test_no_piece_of_a_text_is_broken(tokenizer: Tokenizer, text: str, cuts: list[int]) -> None:
    pieces = stream(tokenizer, tokenizer.encode(text), cuts, [], skip=True)
    assert "".join(pieces) == tokenizer.decode(tokenizer.encode(text))
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@BOTH
@given(prompt=TEXTS, text=TEXTS, cuts=CUTS)
def test_output_continues_the_prompt(tokenizer: Tokenizer, prompt: str, text: str, cuts: list[int]) -> None:
    before, after = tokenizer.encode(prompt), tokenizer.encode(text, add_special_tokens=False)
    pieces = stream(tokenizer, after, cuts, before, skip=True)
    assert tokenizer.decode(before) + "".join(pieces) == tokenizer.decode(before + after)


@BOTH
@given(text=st.text(max_size=10), at=st.integers(0, 60))
def test_a_character_that_the_prompt_began_is_output_whole(tokenizer: Tokenizer, text: str, at: int) -> None:
    ids = tokenizer.encode(text + "😀" + text, add_special_tokens=False)
    output = "".join(stream(tokenizer, ids[at:], [], ids[:at], skip=True))
    assert tokenizer.decode(ids).endswith(output)
    assert "\ufffd" in text or "\ufffd" not in output


@BOTH
def test_each_character_comes_with_its_last_token(tokenizer: Tokenizer) -> None:
    tokens = [tokenizer.token_to_id(f"<0x{b:02X}>") for b in "é".encode()]
    if tokenizer is BPE:
        tokens = [tokenizer.token_to_id(char) for char in "Ã©"]
    detokenizer = IncrementalDetokenizer(tokenizer, [tokenizer.bos_token_id or 0])
    assert [detokenizer.append([token or 0]) for token in tokens] == ["", "é"]
    assert detokenizer.finish() == ""


@BOTH
def test_an_unfinished_character_becomes_the_replacement_at_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🂡", add_special_tokens=False)[:-1]
    pieces = stream(tokenizer, ids, [len(ids)], [], skip=True)
    assert "".join(pieces[:-1]) == ""
    assert pieces[-1] == "\ufffd"


def test_special_tokens_show_when_asked_for() -> None:
    ids = BPE.encode("<|im_start|>hi<|im_end|>", add_special_tokens=False)
    assert "".join(stream(BPE, ids, [], [], skip=False)) == "<|im_start|>hi<|im_end|>"
    assert "".join(stream(BPE, ids, [], [], skip=True)) == "hi"
