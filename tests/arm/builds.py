"""Builds programs for guests: they have no compilers for most recipes, and no time.

``build`` of tests/targets asks here, by HTTP, where ``UFTRACE_TESTS_BUILDS`` says so.
"""

from __future__ import annotations

import io
import tarfile
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.targets.build import build

# What the emulator calls the host's own 127.0.0.1.
HOST = "10.0.2.2"


@contextmanager
def build_service() -> Iterator[str]:
    """Build what guests ask for; yields the address that they know."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://{HOST}:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    # GET /NAME/VARIANT: a tar of the folder that the program is in.
    def do_GET(self) -> None:
        name, variant = urllib.parse.unquote(self.path).strip("/").split("/")
        try:
            folder = build(name, variant, "aarch64").parent
        except (KeyError, ValueError, RuntimeError) as error:
            self._send(500, f"{name} {variant}: {error}".encode())
            return
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            tar.add(folder, ".")
        self._send(200, packed.getvalue(), {"X-Folder": folder.name})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: what fails says so in the guest."""
