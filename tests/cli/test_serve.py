"""``octavo serve`` from its start to its end, whichever end that is."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from helpers_cli import FAST, environment, make_chat_adapter, make_chat_model, octavo_process, wait_until
from octavo.client.verbs import EngineInfo
from octavo.errors import OctavoError
from octavo.server.serve import bind, capacity

LONG = {"prompt": "Hi", "max_tokens": 4000, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("chat"))


@dataclass
class Served:
    """A running server: its address, its process, what it has printed."""

    process: subprocess.Popen[bytes]
    url: str = ""
    lines: list[str] = field(default_factory=list)

    @property
    def engine(self) -> psutil.Process:
        """The process of the engine, told apart from the one that renders chats."""
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if "octavo.engine_process" in child.cmdline())

    def read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.decode().rstrip())

    def until_it_listens(self) -> None:
        end = time.monotonic() + 60
        while not (found := [line for line in self.lines if line.startswith("listening on ")]):
            assert time.monotonic() < end, self.lines
            assert self.process.poll() is None, self.lines
            time.sleep(0.01)
        self.url = found[0].removeprefix("listening on ")

    def ends(self, seconds: float = 20) -> int:
        """Its exit code. Nothing of it may be left."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        code = self.process.wait(seconds)
        _, left = psutil.wait_procs(children, timeout=5)
        assert not left
        return code


@contextmanager
def served(model: Path, *options: str) -> Iterator[Served]:
    with octavo_process("serve", model, "--port", "0", *FAST, *options) as process:
        server = Served(process)
        reader = threading.Thread(target=server.read, daemon=True)
        reader.start()
        try:
            server.until_it_listens()
            yield server
        finally:
            process.kill()
            process.wait()
            reader.join(10)


@contextmanager
def streaming(server: Served, **body: Any) -> Iterator[Iterator[str]]:
    """The lines of a stream that has begun."""
    with httpx.stream("POST", f"{server.url}/v1/completions", json=LONG | body, timeout=30) as response:
        assert response.status_code == 200
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        yield lines


def data_of(lines: Iterator[str]) -> list[Any]:
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def test_it_says_what_it_serves_and_drains_on_sigterm(model):
    with served(model, "--served-model-name", "tiny") as server:
        assert re.match(r"\S+ on cpu, float32", server.lines[0])
        assert server.lines[1].startswith("weights ")
        assert re.match(r"\d+ requests of 2,048 tokens fit, \d+ of 8,192; at most 256 run at once", server.lines[2])
        assert server.lines[3].startswith("steps of up to 256 tokens; --max-num-batched-tokens: fewer for steadier")
        assert httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"] == "tiny"
        assert "libtorch" not in Path(f"/proc/{server.process.pid}/maps").read_text(), "the HTTP process has torch"
        assert "libtorch" in Path(f"/proc/{server.engine.pid}/maps").read_text()
        with streaming(server, max_tokens=100) as lines:
            server.process.send_signal(signal.SIGTERM)
            chunks = data_of(lines)
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        assert server.ends() == 0


def test_who_comes_while_it_drains_is_sent_elsewhere(model):
    with served(model) as server, streaming(server) as lines:
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        ready = httpx.get(f"{server.url}/ready")
        assert (ready.status_code, ready.json()["reason"]) == (503, "the server is about to end")
        refused = httpx.post(f"{server.url}/v1/completions", json={"prompt": "Hi"})
        assert (refused.status_code, refused.headers["connection"], refused.headers["retry-after"]) == (
            503,
            "close",
            "5",
        )
        assert data_of(lines)[-1]["choices"][0]["finish_reason"] == "length"
        assert server.ends() == 0


def test_the_drain_has_a_limit(model):
    with served(model, "--drain", "0.5") as server, streaming(server) as lines:
        server.process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        with contextlib.suppress(httpx.HTTPError):  # it may be cut in the middle
            assert not any(chunk["choices"][0]["finish_reason"] == "length" for chunk in data_of(lines))
        assert server.ends() == 0
        assert time.monotonic() - begun < 10


def test_a_second_ctrl_c_does_not_wait(model):
    with served(model, "--drain", "600") as server, streaming(server):
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGINT)
        assert server.ends(10) == 0
    assert not any("Traceback" in line for line in server.lines), server.lines


def test_a_dead_engine_is_told_to_everybody_and_ends_the_server(model):
    with served(model) as server, streaming(server) as lines:
        server.engine.kill()
        killed = time.monotonic()
        chunks = data_of(lines)
        assert time.monotonic() - killed < 1
        assert "killed by SIGKILL" in json.dumps(chunks[-1]["error"])
        answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "Hi"})
        assert answer.status_code == 503
        assert "killed by SIGKILL" in answer.json()["error"]["message"]
        assert httpx.get(f"{server.url}/health").status_code == 503
        assert server.ends(10) == 1
    assert server.lines[-1].startswith("octavo: the engine has died: it was killed by SIGKILL")
    assert any(" error the engine has died: it was killed by SIGKILL" in line for line in server.lines)
    assert not any("Traceback" in line for line in server.lines)


def test_a_client_that_leaves_frees_its_blocks(model):
    with served(model, "--debug-routes") as server:
        with streaming(server, max_tokens=8000):  # so many that it still runs when the machine is busy
            assert httpx.get(f"{server.url}/health").json()["running"] == 1
        end = time.monotonic() + 5
        while (counts := httpx.post(f"{server.url}/debug/check").json())["unfinished"]:
            assert time.monotonic() < end, counts
        assert counts["free_blocks"] == counts["num_blocks"]


def test_adapters_to_begin_with_are_models_beside_the_model(model, tmp_path):
    adapter = make_chat_adapter(tmp_path / "adapter")
    options = ("--served-model-name", "tiny", "--lora", f"sql={adapter}", "--allow-lora-loading")
    with served(model, *options) as server:
        later = {"lora_name": "later", "lora_path": str(adapter)}
        assert httpx.post(f"{server.url}/v1/load_lora_adapter", json=later).json()["loaded"]
        models = httpx.get(f"{server.url}/v1/models").json()["data"]
        assert {entry["id"] for entry in models} == {"tiny", "sql", "later"}
        texts = set()
        for name in ("tiny", "sql"):
            body = {"model": name, "prompt": "Hi", "max_tokens": 8, "temperature": 0}
            texts.add(httpx.post(f"{server.url}/v1/completions", json=body).json()["choices"][0]["text"])
        assert len(texts) == 2


def test_an_empty_name_is_one_line_before_the_model_is_looked_for(tmp_path):
    with octavo_process("serve", tmp_path / "no-model", "--served-model-name", "") as process:
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err.decode()) == (2, "octavo: --served-model-name is empty; accepted: a name\n")


@pytest.mark.parametrize(
    ("loras", "message"),
    [
        (["tiny={good}"], "--lora tiny={good}: the name is taken; accepted: another one"),
        (["a={good}", "a={good}"], "--lora a={good}: the name is taken; accepted: another one"),
        (["a={good}", "b={good}/none"], "{good}/none is not a folder; a LoRA adapter in PEFT's format was expected"),
    ],
)
def test_a_wrong_adapter_is_one_line_before_the_model_is_looked_for(tmp_path, loras, message):
    good = make_chat_adapter(tmp_path / "adapter")
    options = [word for lora in loras for word in ("--lora", lora.format(good=good))]
    with octavo_process("serve", tmp_path / "no-model", "--served-model-name", "tiny", *options) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode in (1, 2)
    assert err.decode() == f"octavo: {message.format(good=good)}\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_can_be_ended_while_the_model_is_loaded(model, tmp_path, number):
    with octavo_process("serve", model, "--port", "0", *FAST, env=environment(TMPDIR=str(tmp_path))) as process:
        parent = psutil.Process(process.pid)
        end = time.monotonic() + 60
        while not (children := parent.children()):
            assert time.monotonic() < end
            time.sleep(0.005)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
        _, left = psutil.wait_procs(children, timeout=10)
    assert not left
    assert not list(tmp_path.glob("octavo-*")), "the sockets' folder is left behind"
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGTERM)
    assert b"Traceback" not in err


def test_a_port_that_is_taken_is_one_line_before_the_model_is_looked_for(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with octavo_process("serve", tmp_path / "nothing", "--port", port) as process:
            _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.decode() == f"octavo: cannot listen on 127.0.0.1, port {port}: Address already in use\n"


def test_a_port_is_taken_as_soon_as_it_is_bound():
    """Two servers that load their models at the same time must not find out at the end."""
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(OctavoError, match=f"port {port}: Address already in use"):
            bind("127.0.0.1", port)


def test_an_idle_connection_is_not_closed_under_a_clients_hands(model):
    with served(model) as server:
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=20)
        for pause in (6, 0):  # uvicorn's own limit is 5 seconds
            connection.request("GET", "/version")
            assert connection.getresponse().read()
            time.sleep(pause)
        connection.close()


def test_a_log_for_programs_has_lines_of_one_form(model, tmp_path):
    log = tmp_path / "log"
    options = ("--port", "0", "--log-format", "json", *FAST)
    with log.open("wb") as file, octavo_process("serve", model, *options, stderr=file) as process:
        wait_until(lambda: b"startup complete" in log.read_bytes(), process)
        process.terminate()
        assert process.wait(20) == 0
    messages = [json.loads(line)["message"] for line in log.read_text().splitlines()]
    assert any(message.startswith("listening on http://127.0.0.1:") for message in messages)
    assert any("tokens fit" in message for message in messages)


def test_a_full_disk_costs_lines_of_the_log_and_nothing_else(model, tmp_path):
    """The log's file may not grow: to write more fails, as on a disk without room."""
    log, ask = tmp_path / "log", {"prompt": "Hi", "max_tokens": 3}
    with log.open("ab") as file, octavo_process("serve", model, "--port", "0", *FAST, stderr=file) as process:
        wait_until(lambda: b"listening on" in log.read_bytes(), process)
        url = re.search(r"listening on (\S+)", log.read_text())[1]
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        try:
            size = log.stat().st_size
            for each in family:
                each.rlimit(psutil.RLIMIT_FSIZE, (size, psutil.RLIM_INFINITY))
            for _ in range(40):
                assert httpx.post(f"{url}/v1/completions", json=ask, timeout=30).status_code == 200
            assert httpx.get(f"{url}/health").status_code == 200
            assert log.stat().st_size == size
            for each in family:
                each.rlimit(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
            httpx.post(f"{url}/v1/completions", json=ask, headers={"x-request-id": "there-is-room-again"})
            wait_until(lambda: b"there-is-room-again" in log.read_bytes(), process)
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()
    assert "Traceback" not in log.read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device without room")
def test_a_disk_that_is_full_from_the_start_keeps_no_server_from_starting(model):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with open("/dev/full", "wb") as full, octavo_process("serve", model, "--port", port, *FAST, stderr=full) as process:
        try:
            wait_until(lambda: answers(f"http://127.0.0.1:{port}/ready"), process)
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_a_model_that_is_not_there_is_one_line(tmp_path):
    with octavo_process("serve", tmp_path / "nothing", "--port", "0") as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.decode() == f"octavo: {tmp_path / 'nothing'}: no such file or folder\n"


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (100_000, "8 requests of 2,048 tokens fit, 2 of 8,192, 0 of 100,000"),
        (8192, "8 requests of 2,048 tokens fit, 2 of 8,192"),
        (500, "32 requests of 500 tokens fit"),
    ],
)
def test_how_much_fits(limit, expected):
    info = EngineInfo("m", "/m", "1", 9, limit, 256, 2048, 1030, 16, "float32", "cpu")
    assert capacity(info) == f"{expected}; at most 256 run at once"
