from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from octavo.errors import RequestError
from octavo.text.stop import MAX_STOP_CHARACTERS, StopMatcher

SHORT = st.text(alphabet="ab😀", max_size=30)
STOPS = st.lists(st.text(alphabet="ab😀", min_size=1, max_size=5), max_size=5)
PIECES = st.lists(st.tuples(st.text(alphabet="ab😀", max_size=4), st.booleans()), max_size=12)


def expected(stop: list[str], pieces: list[tuple[str, bool]], include: bool) -> tuple[str, str | None]:
    """Cut at the first prefix of the text that ends, within an active piece, with a stop string."""
    text = ""
    for piece, active in pieces:
        for char in piece:
            text += char
            found = max((s for s in stop if text.endswith(s)), key=len, default=None)
            if found and active:
                return (text if include else text[: -len(found)]), found
    return text, None


def run(stop: list[str], pieces: list[tuple[str, bool]], include: bool) -> tuple[list[str], str | None]:
    matcher = StopMatcher(stop, include)
    shown = [matcher.feed(piece, active)[0] for piece, active in pieces]
    return [*shown, matcher.flush()], matcher.matched


@given(stop=STOPS, pieces=PIECES, include=st.booleans())
@example(stop=["abab", "bb"], pieces=[("aba", True), ("babb", True)], include=False)
def test_text_and_match_are_those_of_the_whole_text(
    stop: list[str], pieces: list[tuple[str, bool]], include: bool
) -> None:
    shown, matched = run(stop, pieces, include)
    assert ("".join(shown), matched) == expected(stop, pieces, include)


@given(stop=STOPS, pieces=PIECES)
def test_nothing_shown_is_taken_back_and_nothing_is_held_without_need(
    stop: list[str], pieces: list[tuple[str, bool]]
) -> None:
    matcher, text, shown = StopMatcher(stop), "", ""
    for piece, _ in pieces:
        shown += matcher.feed(piece)[0]
        text += piece
        if matcher.matched is not None:
            return
        held = text.removeprefix(shown)
        assert shown + held == text
        needed = max((n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
        assert len(held) == needed


@given(stop=STOPS, text=SHORT, cut=st.integers(0, 30))
def test_borders_of_pieces_do_not_matter(stop: list[str], text: str, cut: int) -> None:
    whole = run(stop, [(text, True)], include=False)
    parts = run(stop, [(text[:cut], True), (text[cut:], True)], include=False)
    assert ("".join(whole[0]), whole[1]) == ("".join(parts[0]), parts[1])


def test_nothing_comes_after_a_match() -> None:
    matcher = StopMatcher(["end"])
    assert matcher.feed("the end of it") == ("the ", "end")
    assert matcher.feed("more") == ("", "end")
    assert matcher.flush() == ""


def test_the_longest_of_two_that_end_together() -> None:
    assert run(["c", "abc", "bc"], [("xab", True), ("c", True)], include=False) == (["x", "", ""], "abc")


def test_with_include_nothing_is_held_back() -> None:
    assert run(["stop"], [("st", True), ("op!", True)], include=True) == (["st", "op", ""], "stop")


def test_a_string_that_began_before_min_tokens_counts_when_complete_after() -> None:
    assert run(["ab"], [("ab a", False), ("b", True)], include=False) == (["ab ", "", ""], "ab")


@pytest.mark.parametrize("last", "ab")
def test_hostile_strings_take_linear_time(last: str) -> None:
    stop = ["a" * (MAX_STOP_CHARACTERS // 2 - 1) + "c", "a" * (MAX_STOP_CHARACTERS // 2 - 1) + "d"]
    started = time.perf_counter()
    matcher = StopMatcher(stop)
    text = ("a" * 4000 + last) * 25
    shown = "".join(matcher.feed(char)[0] for char in text) + matcher.flush()
    assert shown == text
    assert time.perf_counter() - started < 5


def test_strings_that_are_too_long() -> None:
    with pytest.raises(RequestError, match=f"at most {MAX_STOP_CHARACTERS}"):
        StopMatcher(["a" * MAX_STOP_CHARACTERS, "b"])
