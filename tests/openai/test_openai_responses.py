"""From outputs to bodies of answers: every field, written out by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest

from octavo.openai.logprobs import token_text
from octavo.openai.metrics import metrics_of
from octavo.openai.responses import Answered, Extras, chat_completion, completion
from octavo.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput

BYTES = {1: b"He", 2: b"y ", 3: b"\xf0\x9f", 4: b"!"}
BY = Answered("id-1", 1700000000, "tiny", BYTES.__getitem__)


def plain(body: Any) -> Any:
    return json.loads(msgspec.json.encode(body))


def output(n: int = 1, **changes: Any) -> RequestOutput:
    """A request of three prompt tokens, one of them cached, with ``n`` completions of two tokens."""
    completions = [CompletionOutput(i, f"Hey {i}", [1, 2], finish_reason="stop", stop_reason=2) for i in range(n)]
    metrics = RequestMetrics(1.0, 1.5, 2.0, 4.0, num_cached_tokens=1, num_preemptions=2, waited_for="needs blocks")
    whole = RequestOutput("r", "abc", [7, 8, 9], completions, True, metrics)
    for name, value in changes.items():
        setattr(whole.outputs[0] if hasattr(whole.outputs[0], name) else whole, name, value)
    return whole


def usage(prompt: int, written: int, cached: int) -> dict[str, Any]:
    details = {"cached_tokens": cached}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": details,
    }


METRICS = {
    "queue_time": 0.5,
    "waited_for": "needs blocks",
    "time_to_first_token": 1.0,
    "total_time": 3.0,
    "cached_tokens": 1,
    "preemptions": 2,
}


def test_a_chat() -> None:
    assert plain(chat_completion(output(2), 0, BY)) == {
        "id": "id-1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "tiny",
        "choices": [
            {
                "index": i,
                "message": {"role": "assistant", "content": f"Hey {i}", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": 2,
            }
            for i in range(2)
        ],
        "usage": usage(3, 4, 1),
        "metrics": METRICS,
        "prompt_logprobs": None,
        "system_fingerprint": None,
    }


def test_completions_of_several_prompts() -> None:
    body = plain(completion([output(2), output(1, text="last", finish_reason="length", stop_reason=None)], BY))
    assert {name: body[name] for name in ("id", "object", "created", "model", "usage", "system_fingerprint")} == {
        "id": "id-1",
        "object": "text_completion",
        "created": 1700000000,
        "model": "tiny",
        "usage": usage(6, 6, 2),
        "system_fingerprint": None,
    }
    assert [(c["index"], c["text"], c["finish_reason"], c["stop_reason"]) for c in body["choices"]] == [
        (0, "Hey 0", "stop", 2),
        (1, "Hey 1", "stop", 2),
        (2, "last", "length", None),
    ]
    assert all(c["logprobs"] is None and c["prompt_logprobs"] is None for c in body["choices"])


SCORES = [
    {1: Logprob(-0.5, 1), 4: Logprob(-1.5, 2)},
    {3: Logprob(-math.inf, 9), 4: Logprob(-0.25, 1), 1: Logprob(-2.0, 2)},
]


def test_log_probabilities_of_a_chat() -> None:
    scored = output(token_ids=[1, 3], logprobs=SCORES)
    half = {"token": "bytes:\\xf0\\x9f", "logprob": -9999.0, "bytes": [0xF0, 0x9F]}
    he = {"token": "He", "bytes": [72, 101]}
    mark = {"token": "!", "bytes": [33]}
    content = plain(chat_completion(scored, 2, BY))["choices"][0]["logprobs"]["content"]
    assert content == [
        {**he, "logprob": -0.5, "top_logprobs": [{**he, "logprob": -0.5}, {**mark, "logprob": -1.5}]},
        {**half, "top_logprobs": [{**mark, "logprob": -0.25}, {**he, "logprob": -2.0}]},
    ]
    none = plain(chat_completion(scored, 0, BY))["choices"][0]["logprobs"]["content"]
    assert [entry["top_logprobs"] for entry in none] == [[], []]


def test_log_probabilities_of_a_completion() -> None:
    body = plain(completion([output(token_ids=[1, 3], logprobs=SCORES)], BY))
    assert body["choices"][0]["logprobs"] == {
        "tokens": ["He", "bytes:\\xf0\\x9f"],
        "token_logprobs": [-0.5, -9999.0],
        "top_logprobs": [{"He": -0.5, "!": -1.5}, {"bytes:\\xf0\\x9f": -9999.0, "!": -0.25, "He": -2.0}],
        "text_offset": [0, 2],
    }


def test_an_echoed_prompt_comes_before_its_completion() -> None:
    scored = output(token_ids=[1, 3], logprobs=SCORES, prompt_logprobs=[None, {1: Logprob(-1.0, 1)}, SCORES[0]])
    scored.prompt_token_ids = [4, 1, 1]
    choice = plain(completion([scored], BY, Extras(echo=["!HeHe"])))["choices"][0]
    assert choice["text"] == "!HeHeHey 0"
    assert choice["logprobs"]["tokens"] == ["!", "He", "He", "He", "bytes:\\xf0\\x9f"]
    assert choice["logprobs"]["token_logprobs"] == [None, -1.0, -0.5, -0.5, -9999.0]
    assert choice["logprobs"]["top_logprobs"][0] is None
    assert choice["logprobs"]["text_offset"] == [0, 1, 3, 5, 7]


def test_token_ids_where_they_are_wanted() -> None:
    wanted = Extras(token_ids=True)
    chat = plain(chat_completion(output(), 0, BY, wanted))
    assert (chat["prompt_token_ids"], chat["choices"][0]["token_ids"]) == ([7, 8, 9], [1, 2])
    text = plain(completion([output()], BY, wanted))["choices"][0]
    assert (text["prompt_token_ids"], text["token_ids"]) == ([7, 8, 9], [1, 2])


def test_metrics_of_several_prompts() -> None:
    """Times of the slowest, sums of the rest; what never came is null."""
    quick = output()
    quick.metrics = RequestMetrics(3.0, None, None, 3.5, num_cached_tokens=2)
    assert plain(metrics_of([quick, output()])) == {**METRICS, "cached_tokens": 3}
    assert plain(metrics_of([quick]))["queue_time"] is None
    assert plain(metrics_of([quick]))["waited_for"] is None


def test_log_probabilities_of_the_prompt() -> None:
    scored = output(prompt_logprobs=[None, {8: Logprob(-1.0, 3, "b")}, {9: Logprob(-math.inf, 4, "c")}])
    expected = [
        None,
        {"8": {"logprob": -1.0, "rank": 3, "decoded_token": "b"}},
        {"9": {"logprob": -9999.0, "rank": 4, "decoded_token": "c"}},
    ]
    assert plain(chat_completion(scored, 0, BY))["prompt_logprobs"] == expected
    assert plain(completion([scored], BY))["choices"][0]["prompt_logprobs"] == expected


def test_without_a_tokenizer_tokens_are_named_by_their_ids() -> None:
    body = plain(chat_completion(output(token_ids=[1, 3], logprobs=SCORES), 0, Answered("i", 0, "m")))
    assert [(e["token"], e["bytes"]) for e in body["choices"][0]["logprobs"]["content"]] == [
        ("token_id:1", None),
        ("token_id:3", None),
    ]


@pytest.mark.parametrize(("token_id", "text"), [(2, "y "), (3, "bytes:\\xf0\\x9f")])
def test_token_text(token_id: int, text: str) -> None:
    assert token_text(token_id, BYTES.__getitem__) == text
