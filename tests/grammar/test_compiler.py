"""Grammars are compiled once, kept while they are used, and made anew when they are worn out."""

from __future__ import annotations

import threading

import pytest

from helpers_text import bpe_metadata
from octavo.core.plan import Finished, Sampled, StepPlan
from octavo.errors import RequestError
from octavo.grammar import compiler
from octavo.grammar.compiler import Compiler
from octavo.grammar.grammars import COMPILING, Grammars
from octavo.grammar.vocabulary import Vocabulary
from octavo.structured_outputs import StructuredOutputs
from octavo.text.gguf_tokenizer import tokenizer_from_metadata

TOKENIZER = tokenizer_from_metadata(bpe_metadata())
YES = StructuredOutputs(choice=["yes", "no"])


@pytest.fixture
def compiled(monkeypatch):
    """A compiler, and the forms that it had to compile."""
    asked, check = [], compiler.checked_grammar
    monkeypatch.setattr(compiler, "checked_grammar", lambda form, specials: asked.append(form) or check(form, specials))
    made = Compiler(Vocabulary(TOKENIZER, TOKENIZER.vocab_size))
    yield made, asked
    made.stop()
    made.stop()


def test_equal_forms_are_compiled_once_also_at_the_same_time(compiled):
    made, asked = compiled
    same = [made.compile(StructuredOutputs(choice=["yes", "no"])) for _ in range(5)]
    assert len(set(map(id, same))) == 1
    other = made.compile(StructuredOutputs(choice=["no", "yes"]))
    assert same[0].result() is not other.result()
    assert made.compile(YES) is same[0]
    assert len(asked) == 2


def test_the_ones_used_last_are_kept(compiled, monkeypatch):
    monkeypatch.setattr(compiler, "MOST_GRAMMARS", 2)
    made, asked = compiled
    forms = [StructuredOutputs(choice=[name]) for name in "abc"]
    for i in (0, 1, 0, 2, 0, 1):
        made.compile(forms[i]).result()
    assert [form.choice for form in asked] == [["a"], ["b"], ["c"], ["b"]]


class PanicError(BaseException):
    """As those of a library in Rust, which are no ``Exception``."""


@pytest.mark.parametrize("error", [OSError("too many open files"), PanicError("index out of bounds")])
def test_whatever_goes_wrong_is_an_error_of_the_one_request(monkeypatch, error):
    def fail(form, specials):
        raise error

    monkeypatch.setattr(compiler, "checked_grammar", fail)
    made = Compiler(Vocabulary(TOKENIZER, TOKENIZER.vocab_size))
    with pytest.raises(RequestError, match=rf"the choice of structured_outputs could not be compiled \(.*: {error}\)"):
        made.compile(YES).result()
    made.stop()


def test_what_failed_is_tried_again_and_what_many_have_used_is_made_anew(compiled, monkeypatch):
    made, asked = compiled
    bad = StructuredOutputs(regex="(")
    for _ in range(2):
        with pytest.raises(RequestError, match="the regex of structured_outputs cannot be used"):
            made.compile(bad).result()
    monkeypatch.setattr(compiler, "MOST_USES", 3)
    for _ in range(7):
        made.compile(YES).result()
    made.forget(YES)
    made.compile(YES).result()
    assert asked == [bad] * 2 + [YES] * 4


def plan_of(*names: str) -> StepPlan:
    return StepPlan(0, (), masked=tuple(enumerate(names)))


def tokens_of(mask: bytes) -> list[int]:
    return [i for i in range(8 * len(mask)) if mask[i // 8] >> (i % 8) & 1]


def test_completions_wait_begin_go_on_and_end():
    grammars = Grammars(TOKENIZER, TOKENIZER.vocab_size)
    assert grammars.ready() == ([], [])
    assert grammars.add("a", YES, (1,)) == COMPILING
    while (found := grammars.ready()) == ([], []):
        grammars.wait(1.0)
    assert found == (["a"], [])
    assert grammars.add("b", YES, ()) == "", "it is known"
    start = grammars.masks(plan_of("a", "b", "stranger"))
    assert sorted(start) == [0, 1]
    assert start[0] == start[1]
    y = TOKENIZER.encode("y")[0]
    (es,) = TOKENIZER.encode("es")
    assert y in tokens_of(start[0])
    assert grammars.apply([Sampled("a", y), Sampled("b", y), Sampled("stranger", 5)]) == []
    assert tokens_of(grammars.masks(plan_of("a"))[0]) == [es]
    assert grammars.apply([Sampled("a", es), Sampled("b", es)]) == [("b", "stop", None)]
    assert tokens_of(grammars.masks(plan_of("a"))[0]) == [1]
    assert grammars.apply([Sampled("a", 1), Finished("a", "stop"), Finished("b", "stop")]) == []
    assert grammars.masks(plan_of("a", "b")) == {}
    grammars.stop()


def test_a_lexer_that_failed_is_not_handed_to_the_next_one(monkeypatch):
    asked, check = [], compiler.checked_grammar
    monkeypatch.setattr(compiler, "checked_grammar", lambda form, specials: asked.append(form) or check(form, specials))
    grammars = Grammars(TOKENIZER, TOKENIZER.vocab_size)
    for name in ("a", "b"):
        waits = grammars.add(name, YES, (1,))
        while waits and name not in grammars.ready()[0]:
            grammars.wait(1.0)
        ((_, reason, message),) = grammars.apply([Sampled(name, TOKENIZER.encode("x")[0])])
        assert reason == "refused"
        assert "cannot go on after what was written" in message
    assert len(asked) == 2
    grammars.stop()


def test_stopping_cancels_what_has_not_begun(monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(compiler, "checked_grammar", lambda *_: gate.wait(30))
    made = Compiler(Vocabulary(TOKENIZER, TOKENIZER.vocab_size))
    waiting = [made.compile(StructuredOutputs(choice=[str(i)])) for i in range(4)]
    made.stop()
    assert waiting[-1].cancelled()
    gate.set()


def test_what_takes_long_can_be_made_before_the_first_form():
    grammars = Grammars(TOKENIZER, TOKENIZER.vocab_size)
    grammars.warm_up()
    form = StructuredOutputs(json_object=True)
    waits = grammars.add("a", form, (1,))
    while waits and "a" not in grammars.ready()[0]:
        grammars.wait(1.0)
    assert grammars._tools.compiler._known[form.key].uses == 2, "it is the one that was made before"
    assert "library" in vars(grammars._tools.vocabulary)
    grammars.stop()
    nothing = Grammars(None, 100)
    nothing.warm_up()
    nothing.stop()
