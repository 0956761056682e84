from __future__ import annotations

import threading
import time

import pytest

from octavo.errors import RequestError
from octavo.text.template_process import MAX_TEMPLATE_CHARACTERS, _process, render_template, start_template_process
from octavo.text.template_worker import CPU_SECONDS

DOUBLING = "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}"
LAUGHS = "{% set n = namespace(x=[1]) %}{% for i in range(64) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}"
NESTED_LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
TOO_MUCH = "ran for more than 2 seconds|memory|printed more than"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ ''.__class__ }}", "not allowed: access to attribute '__class__' of a str"),
        ("{{ ''['__class__']['__mro__'] }}", "not allowed"),
        ("{{ '{0.__class__}'.format('') }}", "not allowed"),
        ("{{ raise_exception.__globals__ }}", "not allowed"),
        ("{% set _ = messages.append(1) %}", "not allowed"),
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("{% if %}", "malformed at line 1"),
        ("{% for %}", "malformed"),
        ("{% nonsense %}", "malformed"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% include 'file' %}", "no loader"),
        ("{{ raise_exception('two\nlines') }}", "two lines"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nests too deeply"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "nests too deeply"),
        ("{{ 'a' * 10**10 }}", "MiB of memory"),
        ("{{ 'a' | center(10**11) }}", "MiB of memory"),
        ("{{ ('a' * (2 * 10**7)) ~ '' }}", "printed more than"),
        ("{{ (5).to_bytes(10**10, 'big') }}", "MiB of memory"),
        ("x" * (MAX_TEMPLATE_CHARACTERS + 1), "at most"),
    ],
)
def test_hostile_templates_give_one_line(template: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        render_template(template, {"messages": [{"role": "user"}]})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert render_template("{{ 1 + 1 }}", {}) == "2"


@pytest.mark.parametrize("template", [DOUBLING, LAUGHS, NESTED_LOOPS])
def test_templates_without_end_are_stopped(template: str) -> None:
    started = time.perf_counter()
    with pytest.raises(RequestError, match=TOO_MUCH):
        render_template(template, {})
    assert time.perf_counter() - started < 20 * CPU_SECONDS
    assert render_template("{{ 1 + 1 }}", {}) == "2"


def test_threads_share_the_child() -> None:
    results: list[str] = []
    threads = [
        threading.Thread(target=lambda n=n: results.append(render_template("{{ n }}", {"n": n}))) for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results, key=int) == [str(n) for n in range(20)]


def test_a_child_that_was_started_before_is_the_one_that_is_asked() -> None:
    _process().close()
    start_template_process()
    child = _process()._process
    assert child is not None
    assert render_template("{{ 1 + 1 }}", {}) == "2"
    start_template_process()
    assert _process()._process is child


def test_any_text_passes_unharmed() -> None:
    text = "".join(map(chr, range(0x3000))) + "😀\u2028\ud83d"
    assert render_template("{{ text }}", {"text": text}) == text


def test_large_chats_pass() -> None:
    text = "word " * 1_000_000
    assert render_template("{{ text }}", {"text": text}) == text
