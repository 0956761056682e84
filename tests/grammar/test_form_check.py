"""Good forms are tried once, bad ones each time."""

from __future__ import annotations

import pytest

from helpers_text import byte_level_bpe
from octavo.errors import RequestError
from octavo.grammar import form_check
from octavo.grammar.checked import checked_grammar
from octavo.grammar.form_check import FormCheck
from octavo.structured_outputs import StructuredOutputs
from octavo.text.hf_tokenizer import HFTokenizer
from octavo.text.tokenizer_config import TokenizerConfig


def make() -> FormCheck:
    tokenizer = HFTokenizer(byte_level_bpe(), TokenizerConfig(bos_token="<s>", eos_token="</s>", added_tokens={}))
    return FormCheck(tokenizer, tokenizer.vocab_size)


def test_what_is_good_is_remembered_and_what_is_bad_is_not(monkeypatch):
    tried = []

    def trying(form, specials):
        tried.append(form.regex)
        return checked_grammar(form, specials)

    monkeypatch.setattr(form_check, "checked_grammar", trying)
    check = make()
    good, bad = StructuredOutputs(regex="a+"), StructuredOutputs(regex="(")
    for _ in range(2):
        check.check(good)
        with pytest.raises(RequestError, match="unclosed group"):
            check.check(bad)
    assert tried == ["a+", "(", "("]
    assert (check.knows(StructuredOutputs(regex="a+")), check.knows(bad)) == (True, False)
    assert not check.knows(StructuredOutputs(grammar="a+"))


def test_no_more_are_remembered_than_is_said(monkeypatch):
    monkeypatch.setattr(form_check, "MOST_KNOWN", 2)
    check = make()
    forms = [StructuredOutputs(choice=[name]) for name in "abc"]
    for form in forms:
        check.check(form)
    assert [check.knows(form) for form in forms] == [False, True, True]


def test_the_models_special_tokens_may_be_named():
    check = make()
    check.check(StructuredOutputs(grammar='start: "x" <|im_end|>'))
    with pytest.raises(RequestError, match="unknown special token"):
        check.check(StructuredOutputs(grammar='start: "x" <|no_such|>'))
