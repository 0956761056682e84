"""What is sent is what arrives; bytes that make no sense are refused, and nothing else happens."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.client.verbs import EngineInfo, Load
from octavo.client.wire import (
    Abort,
    Answer,
    Begun,
    Call,
    End,
    Generate,
    Hello,
    Limits,
    Loading,
    News,
    Piece,
    Ready,
    Refused,
    Scored,
    Start,
    Stop,
    decode_from_engine,
    decode_start,
    decode_to_engine,
    encode,
    encode_request,
    key_of,
)
from octavo.config import EngineConfig
from octavo.errors import RequestError
from octavo.outputs import Logprob, RequestMetrics
from octavo.sampling_params import SamplingParams
from octavo.structured_outputs import StructuredOutputs

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
FLOATS = st.floats(allow_nan=False)
TOKENS = st.integers(0, 2**31 - 1)
LOGPROBS = st.dictionaries(TOKENS, st.builds(Logprob, FLOATS, st.integers(0, 2**31), st.none() | TEXT), max_size=4)

FORMS = [
    None,
    StructuredOutputs(json={"type": "object", "properties": {"\u00e9": {"type": "integer"}}}),
    StructuredOutputs(regex="a+"),
    StructuredOutputs(choice=["yes", "no"]),
    StructuredOutputs(json_object=True, disable_any_whitespace=True),
]
PARAMS = st.builds(
    SamplingParams,
    n=st.integers(1, 256),
    temperature=st.floats(0, 100),
    top_k=st.integers(-1, 2**31 - 1),
    top_p=st.floats(0.001, 1),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    max_tokens=st.none() | st.integers(7, 2**31 - 1),
    min_tokens=st.integers(0, 7),
    stop=st.lists(TEXT.filter(bool), max_size=4) | TEXT.filter(bool),
    bad_words=st.lists(TEXT.filter(bool), max_size=4),
    logit_bias=st.none() | st.dictionaries(TOKENS, st.floats(-100, 100), max_size=4),
    allowed_token_ids=st.none() | st.lists(TOKENS, min_size=1, max_size=4),
    logprobs=st.none() | st.integers(0, 1000),
    ignore_eos=st.booleans(),
    skip_special_tokens=st.booleans(),
    structured_outputs=st.sampled_from(FORMS),
)
METRICS = st.builds(
    RequestMetrics,
    arrival_time=FLOATS,
    first_scheduled_time=st.none() | FLOATS,
    num_cached_tokens=st.integers(0, 2**40),
    waited_for=TEXT,
)
REQUESTS = st.builds(
    Generate,
    key=st.integers(0, 2**62),
    request_id=TEXT,
    prompt=TEXT | st.lists(TOKENS, max_size=20),
    params=PARAMS,
    priority=st.integers(-(2**63), 2**63 - 1),
    cache_salt=TEXT,
    lora=st.none() | TEXT,
    share_key=TEXT,
    deadline=st.none() | FLOATS,
    add_special_tokens=st.booleans(),
    embed=st.booleans(),
)
PIECES = st.builds(
    Piece,
    key=st.integers(0, 2**62),
    index=st.integers(0, 255),
    text=TEXT,
    token_ids=st.lists(TOKENS, max_size=4),
    logprobs=st.none() | st.lists(LOGPROBS, max_size=2),
    cumulative_logprob=st.none() | FLOATS,
    finish_reason=st.none() | TEXT,
    stop_reason=st.none() | TEXT | TOKENS,
)
NEWS = st.builds(
    News,
    begun=st.lists(st.builds(Begun, st.integers(0, 9), st.lists(TOKENS, max_size=4)), max_size=2),
    scored=st.lists(st.builds(Scored, st.integers(0, 9), st.lists(st.none() | LOGPROBS, max_size=3)), max_size=2),
    pieces=st.lists(PIECES, max_size=5),
    ends=st.lists(st.builds(End, st.integers(0, 9), METRICS, st.none() | st.binary(max_size=8)), max_size=2),
    refused=st.lists(st.builds(Refused, st.integers(0, 9), TEXT, st.none() | FLOATS), max_size=2),
    answers=st.lists(st.builds(Answer, st.integers(0, 9), st.none() | st.integers(0, 9), st.none() | TEXT), max_size=2),
    load=st.none() | st.builds(Load, steps=st.integers(0, 2**60), finished=st.dictionaries(TEXT, st.integers(0, 9))),
)


@given(REQUESTS)
@settings(deadline=None)
def test_requests_arrive_as_they_were_sent(request: Generate) -> None:
    assert decode_to_engine(encode_request(request)) == request


@given(NEWS)
@settings(deadline=None)
def test_news_arrive_as_they_were_sent(news: News) -> None:
    assert decode_from_engine(encode(news)) == news


@pytest.mark.parametrize("message", [Hello(), Abort(3), Call(4, "add_lora", ("a", "b")), Stop()])
def test_the_other_messages_to_the_engine(message: Hello | Abort | Call | Stop) -> None:
    assert decode_to_engine(encode(message)) == message


def test_the_other_messages_from_the_engine() -> None:
    info = EngineInfo("m", "/m", "1", 9, 9, 9, 9, 9, 9, "float32", "cpu", {"top_p": 0.5}, ("a", "b"))
    for message in (Loading("weights"), Ready(info)):
        assert decode_from_engine(encode(message)) == message


def test_the_start() -> None:
    config = EngineConfig.from_kwargs("m", kv_cache_memory=1 << 40, gpu_memory_utilization=1, async_scheduling=True)
    start = Start(config, Limits(3, 4), "/f")
    assert decode_start(encode(start)) == start


@pytest.mark.parametrize(
    "options", [{"cache_salt": "\ud800"}, {"priority": 2**64}, {"prompt": [object()]}, {"prompt": "\udfff"}]
)
def test_what_has_no_form_is_the_callers_mistake(options: dict[str, object]) -> None:
    fields: dict[str, object] = {"key": 1, "request_id": "a", "prompt": [1], "params": SamplingParams(), **options}
    with pytest.raises(RequestError, match="cannot be sent"):
        encode_request(Generate(**fields))  # type: ignore[arg-type]


def test_damaged_messages_are_refused_and_nothing_else() -> None:
    rng = random.Random(0)
    request = encode(Generate(7, "a", [1, 2, 3], SamplingParams(stop=["x"], logit_bias={3: 1.0}), share_key="k"))
    keys = 0
    for _ in range(3000):
        data = bytearray(request)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        bytes_ = bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
        try:
            decode_to_engine(bytes_)
        except (msgspec.DecodeError, ValueError):
            keys += key_of(bytes_) == 7
    assert keys > 30, "some that are only a little damaged still say whose they are"


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x93\x01", b"\x80", b"\x92\xa1x\xa1y", b"\x92\xa1x\xc3"])
def test_bytes_without_a_key(data: bytes) -> None:
    assert key_of(data) is None
