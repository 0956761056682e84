"""The application under uvicorn, over real sockets, with clients that behave badly."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from helpers_client import FakeClient
from helpers_http import make, tokenizer
from helpers_live import live
from octavo.server.patient_http import patient_http

SHORT = 0.5


def request(body: bytes, **headers: str) -> bytes:
    fields = {"Host": "a", "Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST /v1/completions HTTP/1.1\r\n{head}\r\n".encode() + body


def ask(**fields: Any) -> bytes:
    return request(json.dumps({"prompt": "Hello there", "max_tokens": 4, **fields}).encode())


def connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.settimeout(30)
    return connection


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def status(connection: socket.socket) -> int:
    return int(connection.recv(65536).split(b" ")[1])


@pytest.mark.parametrize("leaves", ["stops reading", "hangs up"])
def test_a_stream_that_nobody_reads_ends_for_the_engine_too(leaves: str) -> None:
    """Tokens come as fast as they can, with long log-probabilities, so that buffers fill."""
    engine = FakeClient(tokenizer())
    app, _ = make(engine)
    with live(app, http=patient_http(60, SHORT)) as port, connect(port) as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.sendall(ask(max_tokens=4000, stream=True, logprobs=20, n=8))
        wait_until(lambda: bool(engine.running))
        if leaves == "hangs up":
            reader.recv(1000)
            reader.close()
        wait_until(lambda: bool(engine.ended_early))
        assert not engine.running


def test_an_error_at_the_door_leaves_the_connection_usable() -> None:
    app, _ = make(api_keys=("sk-1",))
    with live(app) as port, connect(port) as client:
        client.sendall(ask())
        assert status(client) == 401
        client.sendall(request(b'{"prompt": "x", "max_tokens": 1}', Authorization="Bearer sk-1"))
        assert status(client) == 200


@pytest.mark.parametrize(
    "body", [b"\xff\xfe\x00", b"{", b"[" * 100_000, b'{"prompt": "\xed\xa0\x80"}', b'{"prompt": "x", "n": 1e999}', b""]
)
def test_a_wrong_body_is_the_callers_fault(body: bytes) -> None:
    app, _ = make()
    with live(app) as port, connect(port) as client:
        client.sendall(request(body))
        assert status(client) == 400
        client.sendall(ask())
        assert status(client) == 200


@pytest.mark.parametrize("head", [b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00", b"GET /\x00 HTTP/1.1\r\n\r\n"])
def test_what_is_no_http_is_refused(head: bytes) -> None:
    app, _ = make()
    with live(app) as port:
        with connect(port) as client:
            client.sendall(head)
            assert client.recv(65536).startswith(b"HTTP/1.1 400 ")
        with connect(port) as client:
            client.sendall(ask())
            assert status(client) == 200


def test_a_large_body_is_refused_before_it_has_come() -> None:
    app, _ = make(max_body_bytes=1 << 20)
    with live(app) as port, connect(port) as client:
        client.sendall(request(b"", **{"Content-Length": str(50 << 20)}))
        assert status(client) == 413
        assert client.recv(65536) == b""  # closed: nobody waits for the 50 MB


class Collector(BaseHTTPRequestHandler):
    """Takes traces."""

    taken: ClassVar[list[ExportTraceServiceRequest]] = []

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        unpacked = gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data
        self.taken.append(ExportTraceServiceRequest.FromString(unpacked))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


def test_traces_reach_a_collector_before_the_server_has_ended() -> None:
    collector = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    app, _ = make(otlp_endpoint=f"http://127.0.0.1:{collector.server_port}/v1/traces")
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with live(app) as port, connect(port) as client:
        client.sendall(request(b'{"prompt": "x", "max_tokens": 3}', traceparent=f"00-{trace}-{parent}-01"))
        assert status(client) == 200
    collector.shutdown()
    (resource,) = [resource for taken in Collector.taken for resource in taken.resource_spans]
    (span,) = resource.scope_spans[0].spans
    assert (span.name, span.trace_id.hex(), span.parent_span_id.hex()) == ("llm_request", trace, parent)
    values = {a.key: a.value.int_value for a in span.attributes}
    assert values["gen_ai.usage.completion_tokens"] == 3
