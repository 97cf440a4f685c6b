"""The page of `octosim watch`: of this machine only, for who knows the token in its address."""

from __future__ import annotations

import json
import secrets
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any

from octosim.errors import OctosimError
from octosim.watch.runs import Watch

PERIOD_S = 1.0
"""Seconds between two looks at the files."""
ALIVE_S = 10.0
"""Seconds after which a client that has heard nothing hears an empty comment: a closed page ends its thread."""
HOST = "127.0.0.1"


class Server(ThreadingHTTPServer):
    """Serves the page at /TOKEN/ and its events at /TOKEN/events."""

    daemon_threads = True

    def __init__(self, watch: Watch, port: int) -> None:
        super().__init__((HOST, port), _Handler)
        self.watch, self.token = watch, secrets.token_urlsafe(24)
        self._lock, self._looked = threading.Lock(), 0.0

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error of ours."""

    def changes(self, sent: dict[str, int]) -> dict[str, Any]:
        """The summary, and the runs that changed since the versions in `sent`, which are brought up to date."""
        with self._lock:
            if time.monotonic() - self._looked >= PERIOD_S / 2:
                self.watch.look()
                self._looked = time.monotonic()
            found = {}
            for name, run in self.watch.runs.items():
                if sent.get(name) != run.version:
                    sent[name] = run.version
                    found[name] = run.snapshot()
            return self.watch.summary() | {"changed": found}


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.0"
    server_version, sys_version = "octosim", ""
    timeout = 30

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged."""

    def do_GET(self) -> None:
        port = self.server.server_address[1]
        if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):  # a name that was bound to this address
            self._answer(403, "text/plain", b"This page is of this machine only.\n")
            return
        token, _, place = self.path.split("?")[0].removeprefix("/").partition("/")
        if not secrets.compare_digest(token.encode(), self.server.token.encode()):
            self._answer(403, "text/plain", b"The address lacks its token; take the one that octosim watch printed.\n")
        elif place == "":
            self._page()
        elif place == "events":
            self._events()
        else:
            self._answer(404, "text/plain", b"There is nothing here.\n")

    def _answer(self, status: int, kind: str, content: bytes, policy: str = "default-src 'none'") -> None:
        self.send_response(status)
        self._headers(kind, policy)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _headers(self, kind: str, policy: str) -> None:
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Security-Policy", f"{policy}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")

    def _page(self) -> None:
        nonce = secrets.token_urlsafe(16)
        page = (files("octosim.watch") / "page.html").read_text(encoding="utf-8").replace("NONCE", nonce)
        policy = f"default-src 'none'; connect-src 'self'; img-src data:; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'"
        self._answer(200, "text/html", page.encode(), policy)

    def _events(self) -> None:
        self.send_response(200)
        self._headers("text/event-stream", "default-src 'none'")
        self.end_headers()
        sent: dict[str, int] = {}
        told, before = time.monotonic(), ""
        while True:
            content = json.dumps(self.server.changes(sent), allow_nan=False)
            if content != before:
                self.wfile.write(f"data: {content}\n\n".encode())
                told, before = time.monotonic(), content
            elif time.monotonic() - told > ALIVE_S:
                self.wfile.write(b":\n\n")
                told = time.monotonic()
            time.sleep(PERIOD_S)


def serve(watch: Watch, port: int = 0) -> Server:
    """Serves the page in a thread.  port: 0 takes a free one; OctosimError where it cannot be had."""
    try:
        server = Server(watch, port)
    except OSError as error:
        raise OctosimError(f"port {port} of {HOST} cannot be had: {error.strerror}; name another, or 0 (a free one)") from None
    threading.Thread(target=server.serve_forever, daemon=True, name="watch").start()
    return server
