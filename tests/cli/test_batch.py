"""``octavo batch``, from file to file."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from helpers_cli import (
    CONTEXT,
    FAST,
    batch_line,
    make_chat_adapter,
    make_chat_model,
    octavo_process,
    read_lines,
    wait_until,
    write_lines,
)
from helpers_grammar import TOO_COMPLEX
from helpers_text import byte_level_bpe
from octavo import LLM, LoRARequest, SamplingParams
from octavo.batch.output_file import OutputFile
from octavo.batch.runner import BatchRunner
from octavo.cli.batch import batch
from octavo.errors import ModelError, OctavoError, UsageError

CHAT_URL = "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]
GREEDY = {"temperature": 0, "max_tokens": 6}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("batch") / "chat")


@pytest.fixture(scope="module")
def llm(model: Path) -> LLM:
    return LLM(str(model), kv_cache_memory=8 << 20)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "in.jsonl", tmp_path / "out.jsonl"


def call(model: Path, files: tuple[Path, Path], *arguments: str) -> Result:
    result = CliRunner().invoke(batch, [str(model), str(files[0]), "-o", str(files[1]), *FAST, *arguments])
    if isinstance(result.exception, Exception):
        raise result.exception
    assert "Traceback" not in result.output
    return result


def answers(model: Path, files: tuple[Path, Path], lines: list[Any], *arguments: str) -> dict[str, dict[str, Any]]:
    """Run a batch; custom id -> output line."""
    call(model, (write_lines(files[0], lines), files[1]), *arguments)
    return {line["custom_id"]: line for line in read_lines(files[1])}


def error_of(line: dict[str, Any]) -> dict[str, Any]:
    assert (line["response"]["status_code"], line["error"]) == (400, None)
    return line["response"]["body"]["error"]


def test_chats_and_completions_are_those_of_the_library(model: Path, files: tuple[Path, Path], llm: LLM) -> None:
    found = answers(
        model,
        files,
        [
            batch_line("chat", CHAT_URL, messages=HI, **GREEDY),
            batch_line("text", prompt="The quick", **GREEDY),
            batch_line("ids", prompt=[5, 6, 7], **GREEDY),
            batch_line("both", prompt=["The", "lazy dog"], n=2, temperature=1, seed=3, max_tokens=6),
        ],
    )
    greedy = SamplingParams(**GREEDY)
    chat = llm.chat(HI, greedy, use_tqdm=False)[0]
    body = found["chat"]["response"]["body"]
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": chat.outputs[0].text, "refusal": None}
    assert body["usage"]["prompt_tokens"] == len(chat.prompt_token_ids)
    assert body["usage"]["completion_tokens"] == 6
    for name, prompt in (("text", "The quick"), ("ids", [5, 6, 7])):
        expected = llm.generate(prompt, greedy, use_tqdm=False)[0]
        body = found[name]["response"]["body"]
        assert [c["text"] for c in body["choices"]] == [expected.outputs[0].text]
        assert body["usage"]["prompt_tokens"] == len(expected.prompt_token_ids)
    many = llm.generate(["The", "lazy dog"], SamplingParams(n=2, temperature=1, seed=3, max_tokens=6), use_tqdm=False)
    choices = found["both"]["response"]["body"]["choices"]
    assert [c["text"] for c in choices] == [c.text for output in many for c in output.outputs]
    assert [c["index"] for c in choices] == [0, 1, 2, 3]
    ids = [line["response"]["request_id"] for line in found.values()]
    assert len(set(ids)) == 4


def test_log_probabilities_are_those_of_the_library(model: Path, files: tuple[Path, Path], llm: LLM) -> None:
    found = answers(
        model,
        files,
        [
            batch_line("chat", CHAT_URL, messages=HI, logprobs=True, top_logprobs=2, **GREEDY),
            batch_line("text", prompt="The", logprobs=1, prompt_logprobs=0, **GREEDY),
        ],
    )
    written = llm.tokenizer.token_bytes
    output = llm.chat(HI, SamplingParams(**GREEDY, logprobs=2), use_tqdm=False)[0].outputs[0]
    content = found["chat"]["response"]["body"]["choices"][0]["logprobs"]["content"]
    assert [bytes(entry["bytes"]) for entry in content] == [written(i) for i in output.token_ids]
    assert output.logprobs is not None
    for entry, token_id, at in zip(content, output.token_ids, output.logprobs, strict=True):
        assert entry["logprob"] == pytest.approx(at[token_id].logprob)
        assert len(entry["top_logprobs"]) == 2
        assert entry["top_logprobs"][0]["logprob"] == entry["logprob"]  # greedy takes the likeliest
    choice = found["text"]["response"]["body"]["choices"][0]
    assert len(choice["logprobs"]["token_logprobs"]) == 6
    scores = llm.generate("The", SamplingParams(**GREEDY, prompt_logprobs=0), use_tqdm=False)[0].prompt_logprobs
    assert scores is not None
    assert len(choice["prompt_logprobs"]) == len(scores) > 1
    for entry, at in zip(choice["prompt_logprobs"][1:], scores[1:], strict=True):
        assert at is not None
        assert {int(i): v["logprob"] for i, v in entry.items()} == pytest.approx({i: v.logprob for i, v in at.items()})


def test_tools_and_the_length_of_a_chat(model: Path, files: tuple[Path, Path]) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    found = answers(
        model,
        files,
        [
            batch_line("plain", CHAT_URL, messages=HI, max_completion_tokens=2),
            batch_line("tools", CHAT_URL, messages=HI, tools=tools, max_tokens=2),
            batch_line("none", CHAT_URL, messages=HI, tools=tools, tool_choice="none", max_tokens=2),
            batch_line("long", CHAT_URL, messages=HI),
            batch_line("text", prompt="Hi"),
        ],
        "--max-model-len",
        "64",
    )
    usage = {name: line["response"]["body"]["usage"] for name, line in found.items()}
    for name, tools_text in (("plain", ""), ("none", ""), ("tools", "tools: weather")):
        prompt = f"<|im_start|>user\nHi<|im_end|>\n{tools_text}<|im_start|>assistant\n"
        expected = byte_level_bpe().encode(prompt, add_special_tokens=False)
        assert usage[name]["prompt_tokens"] == len(expected)
    assert usage["long"]["total_tokens"] == 64
    assert usage["text"]["completion_tokens"] == 16


BAD: dict[str, tuple[Any, str | None, str]] = {
    "url": (batch_line("url", "/v1/embeddings", input="a"), "url", "accepted: /v1/chat/completions"),
    "unknown": (batch_line("unknown", prompt="a", strem=1), "strem", "there is no field 'strem'"),
    "stream": (batch_line("stream", prompt="a", stream=True), "stream", "stream is not supported"),
    "format": (
        batch_line("format", CHAT_URL, messages=HI, response_format={"type": "yaml"}),
        "response_format",
        "accepted: an object of type text, json_object or json_schema",
    ),
    "value": (batch_line("value", prompt="a", temperature=-1), "temperature", "accepted: from 0 to 100"),
    "type": (batch_line("type", prompt="a", n="2"), "n", "expected int"),
    "long": (batch_line("long", prompt=[5] * CONTEXT), None, f"at most {CONTEXT - 1} are accepted"),
    "second": (batch_line("second", prompt=[[5], [5] * CONTEXT]), None, f"at most {CONTEXT - 1} are accepted"),
    "tokens": (batch_line("tokens", prompt="a", max_tokens=10**6), None, "is accepted"),
    "vocab": (batch_line("vocab", prompt=[10**6]), None, "the prompt has the token id 1000000"),
    "negative": (batch_line("negative", prompt=[-1]), None, "the prompt has the token id -1"),
    "empty": (batch_line("empty", prompt=[]), "prompt", "prompt takes a text"),
    "no messages": (batch_line("no messages", CHAT_URL, messages=[]), "messages", "messages must be a non-empty list"),
    "image": (
        batch_line("image", CHAT_URL, messages=[{"role": "user", "content": [{"type": "image_url"}]}]),
        "messages",
        "accepted: text",
    ),
    "role": (batch_line("role", CHAT_URL, messages=[{"content": "a"}]), "messages", "must be an object with a role"),
    "forced": (batch_line("forced", CHAT_URL, messages=HI, tool_choice="required"), "tool_choice", "'auto' or 'none'"),
}


def test_bad_lines_are_answered_and_stop_nothing(model: Path, files: tuple[Path, Path]) -> None:
    good = [batch_line("good", prompt="a", max_tokens=2), batch_line("last", prompt="a", max_tokens=2)]
    found = answers(model, files, [good[0], *(line for line, _, _ in BAD.values()), good[1]])
    assert [found[name]["response"]["status_code"] for name in ("good", "last")] == [200, 200]
    for name, (_, param, message) in BAD.items():
        error = error_of(found[name])
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
        assert message in error["message"]


def test_lines_without_a_custom_id_and_duplicates(model: Path, files: tuple[Path, Path]) -> None:
    lines = [
        "not json",
        batch_line("a", prompt="a", max_tokens=2),
        "",
        '{"custom_id": 5}',
        batch_line("a", prompt="b", max_tokens=2),
        '{"custom_id": "a"}',
    ]
    write_lines(files[0], lines)
    first = call(model, files)
    assert "1 answered, 4 refused, 1 skipped" in first.stderr
    found = {line["id"]: line for line in read_lines(files[1])}
    assert set(found) == {f"batch_req_{number}" for number in (1, 2, 4, 5, 6)}
    assert found["batch_req_2"]["response"]["status_code"] == 200
    assert error_of(found["batch_req_1"])["message"].startswith("line 1 is not a JSON object")
    assert [found[f"batch_req_{i}"]["custom_id"] for i in (1, 4, 5, 6)] == [None, None, "a", "a"]
    assert {error_of(found[f"batch_req_{i}"])["code"] for i in (5, 6)} == {"duplicate_custom_id"}
    before = files[1].read_bytes()
    assert "0 answered, 0 refused, 6 skipped" in call(model, files).stderr
    assert files[1].read_bytes() == before


def test_a_duplicates_answer_does_not_settle_the_first(model: Path, files: tuple[Path, Path]) -> None:
    """As after a kill between the two: the refusal is written at once, the answer when it is done."""
    lines = [batch_line("a", prompt="a", max_tokens=2), batch_line("a", prompt="b", max_tokens=2)]
    answers(model, files, lines)
    kept = [line for line in files[1].read_text().splitlines() if "duplicate_custom_id" in line]
    files[1].write_text("".join(f"{line}\n" for line in kept))
    assert "1 answered, 0 refused, 1 skipped" in call(model, files).stderr
    assert Counter(line["response"]["status_code"] for line in read_lines(files[1])) == {200: 1, 400: 1}


def test_only_what_is_missing_is_done(model: Path, files: tuple[Path, Path]) -> None:
    lines = [batch_line(f"r{i}", prompt="a", max_tokens=2) for i in range(5)]
    answers(model, files, lines)
    done = files[1].read_bytes().splitlines(keepends=True)
    files[1].write_bytes(b"".join(done[:2]) + done[2][:50])
    assert "3 answered, 0 refused, 2 skipped" in call(model, files).stderr
    assert files[1].read_bytes().startswith(b"".join(done[:2]))
    assert Counter(line["custom_id"] for line in read_lines(files[1])) == Counter(f"r{i}" for i in range(5))
    assert "5 answered, 0 refused in" in call(model, files, "--overwrite").stderr


def test_more_lines_than_the_engine_is_given_at_a_time(
    model: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from octavo.core.scheduler import Scheduler

    most, add = 0, Scheduler.add

    def count(self: Scheduler, request: Any, now: float = 0.0) -> None:
        nonlocal most
        add(self, request, now)
        most = max(most, len(self.requests))

    monkeypatch.setattr(Scheduler, "add", count)
    lines = [batch_line(f"r{i}", prompt=[i + 3], max_tokens=i % 5 + 1) for i in range(60)]
    found = answers(model, files, lines, "--max-num-seqs", "3")
    assert most == 6
    assert len(found) == 60
    for i in range(60):
        assert found[f"r{i}"]["response"]["body"]["usage"]["completion_tokens"] == i % 5 + 1


def test_a_failing_model_fails_its_request_alone(
    model: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from octavo.models.decoder import DecoderModel

    logits = DecoderModel.raw_logits
    monkeypatch.setattr(DecoderModel, "raw_logits", lambda self, hidden: logits(self, hidden) * float("nan"))
    found = answers(model, files, [batch_line("a", prompt="a"), batch_line("b", prompt="a", stream=True)])
    assert (found["a"]["response"]["status_code"], found["b"]["response"]["status_code"]) == (500, 400)
    error = found["a"]["response"]["body"]["error"]
    assert error["type"] == "server_error"
    assert "no finite maximum" in error["message"]


def test_a_step_that_fails_keeps_what_is_done(
    model: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from octavo.execution.runner import Runner

    run = Runner.run

    def fail_late(self: Runner, plan: Any, *more: Any) -> Any:
        if plan.step > 12:
            raise RuntimeError("lightning")
        return run(self, plan, *more)

    lines = [batch_line(f"r{i}", prompt="a", max_tokens=5, ignore_eos=True) for i in range(9)]
    write_lines(files[0], lines)
    with monkeypatch.context() as patch:
        patch.setattr(Runner, "run", fail_late)
        with pytest.raises(ModelError, match="the model failed in a step: RuntimeError: lightning"):
            call(model, files, "--max-num-seqs", "2")
    finished = len(read_lines(files[1]))
    assert 0 < finished < 9
    assert f"{9 - finished} answered, 0 refused, {finished} skipped" in call(model, files).stderr


def test_a_full_disk_is_one_line(model: Path, files: tuple[Path, Path]) -> None:
    write_lines(files[0], [batch_line("a", prompt="a")])
    with pytest.raises(OctavoError, match="cannot write to '/dev/full': No space left on device"):
        call(model, (files[0], Path("/dev/full")))


def test_places_are_checked_before_the_model_is_loaded(tmp_path: Path, files: tuple[Path, Path]) -> None:
    nowhere = Path("./no-such-model")
    write_lines(files[0], [])
    with pytest.raises(UsageError, match="same file"):
        call(nowhere, (files[0], files[0]))
    (tmp_path / "link").symlink_to(files[0])
    with pytest.raises(UsageError, match="same file"):
        call(nowhere, (files[0], tmp_path / "link"))
    with pytest.raises(UsageError, match="is a folder"):
        call(nowhere, (files[0], tmp_path))
    with pytest.raises(OctavoError, match="cannot read"):
        call(nowhere, (tmp_path / "none", files[1]))
    files[1].write_text("my thesis")
    with pytest.raises(ModelError, match="no model"):
        call(nowhere, files, "--overwrite")
    with pytest.raises(UsageError, match="is not an answer of a batch"):
        call(nowhere, files)
    assert files[1].read_text() == "my thesis"


def test_an_empty_file_gives_an_empty_file(model: Path, files: tuple[Path, Path]) -> None:
    assert answers(model, files, []) == {}


LONG = [batch_line(f"r{i}", prompt="The quick", max_tokens=400, ignore_eos=True) for i in range(40)]


def test_killed_in_the_middle_and_resumed_each_is_answered_once(model: Path, files: tuple[Path, Path]) -> None:
    write_lines(files[0], LONG)
    with octavo_process("batch", model, files[0], "-o", files[1], *FAST, "--max-num-seqs", "3") as process:
        wait_until(lambda: files[1].exists() and files[1].read_bytes().count(b"\n") >= 4, process)
        process.kill()
    done = files[1].read_bytes().count(b"\n")
    assert 4 <= done < len(LONG)
    assert f"{len(LONG) - done} answered, 0 refused, {done} skipped" in call(model, files).stderr
    lines = read_lines(files[1])
    assert Counter(line["custom_id"] for line in lines) == Counter(line["custom_id"] for line in LONG)
    assert all(line["response"]["body"]["usage"]["completion_tokens"] == 400 for line in lines)


def test_ctrl_c_keeps_what_is_finished(model: Path, files: tuple[Path, Path]) -> None:
    write_lines(files[0], LONG)
    with octavo_process("batch", model, files[0], "-o", files[1], *FAST, "--max-num-seqs", "3") as process:
        wait_until(lambda: files[1].exists() and files[1].read_bytes().count(b"\n") >= 2, process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    count = len(read_lines(files[1]))
    assert (process.returncode, out) == (130, b"")
    assert 2 <= count < len(LONG)
    text = err.decode().strip()
    assert text.startswith(f"stopped: {count} answered, 0 refused in ")
    assert text.endswith("the same command goes on from here")
    assert len(text.splitlines()) == 1


@pytest.mark.model
def test_the_real_model_answers_a_chat(files: tuple[Path, Path]) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    write_lines(files[0], [batch_line("a", CHAT_URL, messages=messages, temperature=0, max_tokens=24)])
    arguments = ["smollm2-135m", str(files[0]), "-o", str(files[1]), "--kv-cache-memory", "64M", "--dtype", "float32"]
    assert CliRunner().invoke(batch, arguments).exit_code == 0
    body = json.loads(files[1].read_text())["response"]["body"]
    assert "Paris" in body["choices"][0]["message"]["content"]
    assert body["model"] == "smollm2-135m"


def test_a_line_refused_at_its_second_prompt_leaves_nothing_in_the_engine(files: tuple[Path, Path], llm: LLM) -> None:
    line = json.dumps(batch_line("a", prompt=[[5], [5] * CONTEXT])).encode()
    steps: list[Any] = []
    llm.engine.listeners.append(lambda plan, events: steps.extend([plan] if plan else []))
    with OutputFile(files[1]) as out:
        BatchRunner(llm, out).run(iter([(1, line)]))
    llm.engine.listeners.clear()
    assert steps == []
    assert [found["response"]["status_code"] for found in read_lines(files[1])] == [400]


def test_a_line_whose_model_is_an_adapter_gets_it(model: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    adapters = {name: make_chat_adapter(tmp_path / name, seed=seed) for seed, name in enumerate(("blue", "red"), 1)}
    lines = [batch_line(name, model=name, prompt="The quick", **GREEDY) for name in ("blue", "red", "whatever")]
    lines.append(batch_line("chat", CHAT_URL, model="red", messages=HI, **GREEDY))
    found = answers(model, files, lines, *(f"--lora={name}={path}" for name, path in adapters.items()), "--max-loras=1")
    with LLM(str(model), kv_cache_memory=8 << 20, enable_lora=True) as llm:
        greedy, red = SamplingParams(**GREEDY), LoRARequest("red", lora_path=str(adapters["red"]))
        loras = [LoRARequest("blue", lora_path=str(adapters["blue"])), red, None]
        wanted = llm.generate(["The quick"] * 3, greedy, use_tqdm=False, lora_request=loras)
        chat = llm.chat(HI, greedy, use_tqdm=False, lora_request=red)
    bodies = {name: line["response"]["body"] for name, line in found.items()}
    texts = [bodies[name]["choices"][0]["text"] for name in ("blue", "red", "whatever")]
    assert texts == [output.outputs[0].text for output in wanted]
    assert len(set(texts)) == 3
    assert bodies["chat"]["choices"][0]["message"]["content"] == chat[0].outputs[0].text
    assert [bodies[name]["model"] for name in ("blue", "red", "whatever", "chat")] == ["blue", "red", str(model), "red"]


def test_a_form_that_cannot_be_compiled_is_the_lines_fault(model: Path, files: tuple[Path, Path]) -> None:
    lines = [
        batch_line("schema", CHAT_URL, messages=HI, guided_json={"type": "no such type"}, **GREEDY),
        batch_line("good", CHAT_URL, messages=HI, guided_choice=["yes"], **GREEDY),
        batch_line("complex", CHAT_URL, messages=HI, guided_grammar=TOO_COMPLEX["grammar"], max_tokens=80),
    ]
    found = answers(model, files, lines)
    error = error_of(found["schema"])
    assert (error["type"], error["param"]) == ("invalid_request_error", "guided_json")
    assert "the json of structured_outputs cannot be used" in error["message"]
    error = error_of(found["complex"])
    assert (error["type"], error["param"]) == ("invalid_request_error", "guided_grammar")
    assert error["message"].startswith("guided_grammar: the grammar of structured_outputs cannot go on")
    assert found["complex"]["response"]["status_code"] == 400
    assert found["good"]["response"]["body"]["choices"][0]["message"]["content"] == "yes"


def test_options_that_leave_no_token_are_the_lines_fault(model: Path, files: tuple[Path, Path], llm: LLM) -> None:
    (seven,) = llm.tokenizer.encode("7", add_special_tokens=False)
    only = {"allowed_token_ids": [seven], "max_tokens": 6}
    lines = [
        batch_line("at once", CHAT_URL, messages=HI, bad_words=["7"], **only),
        batch_line("plain", prompt="The quick", **GREEDY),
        batch_line("later", prompt=["The", "lazy"], bad_words=["777"], n=2, **only),
        batch_line("form", CHAT_URL, messages=HI, guided_choice=["yes"], **only),
        batch_line("enough", prompt="The", bad_words=["7777777"], **only),
    ]
    found = answers(model, files, lines)
    for name in ("at once", "later"):
        error = error_of(found[name])
        assert (error["type"], error["param"]) == ("invalid_request_error", "allowed_token_ids")
        assert error["message"].startswith("allowed_token_ids, bad_words: every token is banned; accepted: ")
    error = error_of(found["form"])
    assert error["param"] == "guided_choice"
    assert error["message"].startswith("guided_choice: no token is left: ")
    assert found["enough"]["response"]["body"]["choices"][0]["text"] == "777777"
    expected = llm.generate("The quick", SamplingParams(**GREEDY), use_tqdm=False)[0].outputs[0].text
    assert found["plain"]["response"]["body"]["choices"][0]["text"] == expected
