"""``octavo run``."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from helpers_cli import FAST, make_chat_adapter, make_chat_model, octavo_process
from helpers_text import byte_level_bpe
from octavo import LLM, LoRARequest, SamplingParams
from octavo.cli.run import _Talk, run
from octavo.errors import OctavoError, RequestError, UsageError

LONG = ("-n", "8000", "--kv-cache-memory", "64M")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("run") / "chat")


def call(model: Path, *arguments: str, input: str | bytes | None = None) -> Result:
    """Run the command in this process; an Octavo error comes out as it is."""
    result = CliRunner().invoke(run, [str(model), *FAST, *arguments], input=input)
    if isinstance(result.exception, Exception):
        raise result.exception
    return result


def expected(model: Path, prompt: str | list[dict[str, str]], count: int) -> str:
    """The greedy answer, from the library."""
    params = SamplingParams(temperature=0, max_tokens=count)
    with LLM(str(model), kv_cache_memory=8 << 20) as llm:
        done = llm.generate(prompt, params, use_tqdm=False) if isinstance(prompt, str) else llm.chat(prompt, params)
    return done[0].outputs[0].text


def test_answers_through_the_chat_template(model: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    result = call(model, "Hi", "--system", "Be brief.", "-n", "9")
    assert result.stdout == expected(model, messages, 9) + "\n"
    assert re.fullmatch(
        r"prompt \d+ tokens · 9 tokens · first after [\d.]+ s · then [\d.]+ tokens/s · \d+ KV blocks\n", result.stderr
    )


def test_raw_completes_the_text_as_it_stands(model: Path) -> None:
    assert call(model, "The quick", "--raw", "-n", "9").stdout == expected(model, "The quick", 9) + "\n"


def test_the_prompt_can_come_from_standard_input(model: Path) -> None:
    argument = call(model, "The quick\nbrown", "--raw", "-n", "5").stdout
    assert call(model, "-", "--raw", "-n", "5", input="The quick\nbrown").stdout == argument


def test_the_seed_decides_and_a_stop_string_ends(model: Path) -> None:
    first, again, other = (call(model, "Hi", "-t", "1", "--seed", seed, "-n", "20").stdout for seed in ("1", "1", "2"))
    assert first == again != other
    stop = first[3:6]
    assert (
        call(model, "Hi", "-t", "1", "--seed", "1", "-n", "20", "--stop", stop).stdout
        == first[: first.index(stop)] + "\n"
    )


def test_the_length_is_cut_to_what_fits(model: Path) -> None:
    assert " · 30 tokens · " in call(model, "a", "--raw", "--max-model-len", "32").stderr


def test_a_length_that_does_not_fit_is_an_error(model: Path) -> None:
    with pytest.raises(ValueError, match="max_tokens from 1 to 30 is accepted"):
        call(model, "a", "--raw", "--max-model-len", "32", "-n", "31")


def test_bytes_that_are_no_text_are_refused(model: Path) -> None:
    process = octavo_process("run", model, "-", "--raw", *FAST, stdin=subprocess.PIPE)
    out, err = process.communicate(b"ab\xff")
    assert (process.returncode, out) == (2, b"")
    assert err.decode().splitlines() == [
        "octavo: the text holds half of a surrogate pair (U+DCFF at position 2); accepted: valid Unicode"
    ]


def test_a_model_without_a_template_says_what_to_do(tmp_path: Path) -> None:
    model = make_chat_model(tmp_path, chat_template=None)
    with pytest.raises(UsageError, match="give --raw and a prompt, or --chat-template FILE"):
        call(model, "Hi")
    template = tmp_path / "template"
    template.write_text("{{ messages[0].content }}")
    assert call(model, "Hi", "--chat-template", str(template), "-n", "4").stdout
    assert call(model, "Hi", "--raw", "-n", "4").stdout


def test_a_failing_model_is_an_error(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from octavo.models.decoder import DecoderModel

    logits = DecoderModel.raw_logits
    monkeypatch.setattr(DecoderModel, "raw_logits", lambda self, hidden: logits(self, hidden) * float("nan"))
    with pytest.raises(OctavoError, match="the answer failed: the logits have no finite maximum"):
        call(model, "Hi")


def test_chat_remembers_until_reset_and_reuses_the_cache(model: Path) -> None:
    lines = "Hi\nAnd then?\n/what\n\n/reset\nHi\n/exit\nnever read\n"
    result = call(model, "-n", "8", input=lines)
    first, second, third = re.findall(r"prompt (\d+) tokens(?: \((\d+) cached\))? · 8 tokens", result.stderr)
    prompt = len(
        byte_level_bpe().encode("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)
    )
    assert first == (str(prompt), "")
    assert int(second[0]) > prompt + 8
    assert int(second[1]) >= prompt // 4 * 4
    assert third == (str(prompt), str((prompt - 1) // 4 * 4))
    answers = result.stdout.splitlines()
    assert answers[0] == answers[-1] == expected(model, [{"role": "user", "content": "Hi"}], 8)
    assert "/what is not a command. /reset forgets" in result.stderr
    assert "The conversation is forgotten." in result.stderr


def test_a_turn_that_does_not_fit_is_forgotten(model: Path) -> None:
    result = call(model, "--max-model-len", "40", "-n", "4", input=f"{'long ' * 60}\nHi\n")
    assert "at most 39 are accepted" in result.stderr
    assert "/reset starts anew" in result.stderr
    assert result.stdout.strip() == expected(model, [{"role": "user", "content": "Hi"}], 4).strip()


def test_ctrl_c_ends_it_with_130_and_no_traceback(model: Path) -> None:
    with octavo_process("run", model, "Hi", *FAST, *LONG) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip() == b""


def test_ctrl_c_in_a_chat_stops_the_answer_alone(model: Path) -> None:
    with octavo_process("run", model, *FAST, *LONG, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdin.write(b"Hi\n")
        process.stdin.flush()
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(b"/exit\n", timeout=60)
    assert process.returncode == 0
    assert b"Stopped; this turn is forgotten." in err
    assert b"Traceback" not in err


def test_a_reader_that_leaves_is_no_error_message(model: Path) -> None:
    with octavo_process("run", model, "Hi", *FAST, *LONG) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        process.stdout.close()
        assert process.stderr is not None
        err = process.stderr.read()
        assert process.wait(timeout=60) == 1
    assert err == b""


def test_without_standard_input_there_is_no_chat(model: Path) -> None:
    with octavo_process("run", model, stdin=subprocess.DEVNULL, preexec_fn=lambda: os.close(0)) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.decode().splitlines() == ["octavo: standard input is closed; give the prompt as an argument"]


def test_an_answer_that_cannot_be_shown_is_not_computed_further(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(*_: object, **__: object) -> None:
        raise BrokenPipeError

    with LLM(str(model), kv_cache_memory=8 << 20) as llm:
        monkeypatch.setattr("octavo.cli.run.click.echo", leave)
        with pytest.raises(BrokenPipeError):
            _Talk(llm, {}, False).answer("Hi")
        assert not llm.engine.has_unfinished_requests()


def test_an_adapter_changes_the_answers(model: Path, tmp_path: Path) -> None:
    adapter = make_chat_adapter(tmp_path / "adapter")
    with LLM(str(model), kv_cache_memory=8 << 20, enable_lora=True) as llm:
        params = SamplingParams(temperature=0, max_tokens=9)
        request = LoRARequest("style", lora_path=str(adapter))
        wanted = llm.generate("The quick", params, use_tqdm=False, lora_request=request)[0].outputs[0].text
    answer = call(model, "The quick", "--raw", "-n", "9", "--lora", f"style={adapter}").stdout
    assert answer == wanted + "\n" != call(model, "The quick", "--raw", "-n", "9").stdout


def test_adapters_that_cannot_be_used_are_an_error(model: Path, tmp_path: Path) -> None:
    adapter = make_chat_adapter(tmp_path / "adapter", rank=20)
    with pytest.raises(RequestError, match=r"has rank 20 in .*; at most max_lora_rank=16 is accepted"):
        call(model, "a", "--raw", "--lora", f"style={adapter}")
    assert call(model, "a", "--raw", "-n", "2", "--lora", f"style={adapter}", "--max-lora-rank", "20").exit_code == 0
    with pytest.raises(UsageError, match="2 adapters are given; accepted: one --lora"):
        call(model, "a", "--raw", "--lora", f"x={adapter}", "--lora", f"y={adapter}")
    wrong = call(model, "a", "--lora", "style")
    assert wrong.exit_code == 2
    assert "'style' is not a name and a folder; accepted: NAME=PATH" in wrong.stderr
