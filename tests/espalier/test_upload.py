"""Sending a file: whole, and again after the connection broke."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import httpx
import pytest

from espalier.errors import ServerUnreachable
from espalier.upload import upload_file

CONTENT = b"0123456789" * 100_000


class Stub(BaseHTTPRequestHandler):
    """A server that cuts the connection after `piece` bytes of each part, `breaks` times."""

    received: ClassVar[bytearray] = bytearray()
    breaks: ClassVar[list[int]] = []
    piece: ClassVar[int] = 300_000

    def do_POST(self) -> None:
        self._answer(201)

    def do_GET(self) -> None:
        self._answer(200)

    def do_PATCH(self) -> None:
        assert int(self.headers["Upload-Offset"]) == len(self.received)
        content = self._body()
        if self.breaks and self.breaks.pop():
            self.received.extend(content[: self.piece])
            self.close_connection = True
            return
        self.received.extend(content)
        self._answer(200)

    def _body(self) -> bytes:
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _answer(self, status: int) -> None:
        whole = len(self.received) == len(CONTENT)
        file = {
            "id": "file_0",
            "name": "a.txt",
            "status": "ready" if whole else "uploading",
            "offset": len(self.received),
            "created_at": "2026-01-01T00:00:00Z",
        }
        body = json.dumps(file).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing to standard error."""


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    Stub.received, Stub.breaks, Stub.piece = bytearray(), [], 300_000
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{server.server_port}") as client:
        yield client
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_bytes(CONTENT)
    return tmp_path / "a.txt"


@pytest.mark.parametrize("breaks", [0, 1, 3])
def test_the_whole_file_arrives_however_often_the_connection_breaks(
    http: httpx.Client, path: Path, breaks: int
) -> None:
    Stub.breaks = [1] * breaks
    assert upload_file(http, path).status == "ready"
    assert bytes(Stub.received) == CONTENT


def test_a_connection_that_keeps_breaking_but_goes_on_is_not_given_up(
    http: httpx.Client, path: Path
) -> None:
    Stub.breaks, Stub.piece = [1] * 15, 50_000
    assert upload_file(http, path).status == "ready"
    assert bytes(Stub.received) == CONTENT


def test_it_gives_up_in_the_end(http: httpx.Client, path: Path) -> None:
    Stub.breaks = [1] * 99
    path.write_bytes(b"x")
    with pytest.raises(ServerUnreachable):
        upload_file(http, path)
