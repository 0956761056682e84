"""A small Hugging Face hub on this machine: the few routes that a download needs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/(?P<what>revision|tree)/(?P<revision>[^/?]+))?(?:\?.*)?")
_FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")


@dataclass
class Hub:
    """What the hub has, and what it was asked.

    Attributes:
        repos: repository -> file name -> content.
        gated: repositories that need ``token``.
        cut_at: file name -> the connection breaks after so many bytes, the first time it is asked for.
        requests: (method, path, Range header or None), in order.
    """

    repos: dict[str, dict[str, bytes]]
    gated: set[str] = field(default_factory=set)
    token: str = "hf_secret"
    cut_at: dict[str, int] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    url: str = ""

    def downloads(self) -> list[str]:
        return [path.rsplit("/", 1)[-1] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]


@contextlib.contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        self.hub.requests.append((self.command, self.path, self.headers.get("Range")))
        match = _API.fullmatch(self.path) or _FILE.fullmatch(self.path)
        if match is None or match["repo"] not in self.hub.repos:
            return self._refuse(404, "RepoNotFound")
        if match["repo"] in self.hub.gated and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._refuse(401, "GatedRepo")
        if match["revision"] not in (None, "main", COMMIT):
            return self._refuse(404, "RevisionNotFound")
        files = self.hub.repos[match["repo"]]
        if match.re is _API:
            return self._send(200, json.dumps(_listing(match["repo"], match["what"], files)).encode())
        if match["name"] not in files:
            return self._refuse(404, "EntryNotFound")
        return self._file(match["name"], files[match["name"]])

    def _file(self, name: str, content: bytes) -> None:
        etag = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(asked[1]) if asked else 0
        if asked:
            etag["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = self.hub.cut_at.pop(name, None) if self.command == "GET" else None
        self._send(206 if asked else 200, content[start:], etag, cut)

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True


def _listing(repo: str, what: str | None, files: dict[str, bytes]) -> object:
    if what == "tree":
        sha = {name: hashlib.sha1(content).hexdigest() for name, content in files.items()}
        return [{"type": "file", "path": n, "size": len(c), "oid": sha[n]} for n, c in files.items()]
    return {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
